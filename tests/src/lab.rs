use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use underlay_client::backup::{
    BackupError, BackupOptions, DiskContent, DiskSource, Environment, Job, Outcome, backup,
};
use underlay_client::image::{Chain, Format, OpenOptions};
use underlay_client::restore::{self, OutputFormat, RestoreError, RestoreOptions, create_output};
use underlay_client::state::Memos;
use underlay_store::authority::Authority;
use underlay_store::backend::{Backend, Recording, Traffic};
use underlay_store::cut::{BLOCK, CutParameters, REGION};
use underlay_store::id::{ChunkId, NodeId, RepositoryId, Root, SnapshotId};
use underlay_store::key::RestoreKey;
use underlay_store::pack::{self, ChunkDecoder, PackId, PackKind, Parsed};
use underlay_store::progress::Silent;
use underlay_store::repository::{Access, Repository};
use underlay_store::snapshot::{Consistency, Descriptor, PrivateMetadata, Snapshot, Timestamp};
use underlay_store::tree::{Cursor, Node, NodeSource, Run};

/// A new repository, its keys, one host's memory of what it read, and a count of every request to the object store.
#[allow(missing_debug_implementations)]
pub struct Lab {
    /// Room for images; removed with the lab.
    pub folder: TempDir,
    /// Runs uploads.
    pub runtime: Runtime,
    /// The repository.
    pub repository: Arc<Repository>,
    /// Opens everything.
    pub key: RestoreKey,
    /// What the repository is.
    pub descriptor: Descriptor,
    /// What this host remembers.
    pub memos: Memos,
    /// How to back up.
    pub options: BackupOptions,
    recording: Arc<Recording>,
}

impl Lab {
    /// A repository held in memory.
    pub fn in_memory() -> Self {
        Self::on(Backend::memory())
    }

    /// A repository in `backend`, which must be empty.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn on(backend: Backend) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let runtime = Runtime::new().expect("a runtime");
        let key = RestoreKey::generate();
        let descriptor = Descriptor {
            repository: RepositoryId::random(),
            created: Timestamp::now(),
            public_key: key.backup().public_key(),
            cut: CutParameters::default(),
        };
        let (backend, recording) = backend.with_recording();
        let text = descriptor.seal(key.backup()).expect("a valid descriptor");
        let repository = runtime
            .block_on(async {
                Repository::init(&backend, Bytes::from(text), Vec::new()).await?;
                Repository::open(backend, &folder.path().join("state"), Access::Write).await
            })
            .expect("a new repository");
        recording.take();
        let memos = Memos::new(&folder.path().join("state"), descriptor.repository);
        Self {
            folder,
            runtime,
            repository: Arc::new(repository),
            key,
            descriptor,
            memos,
            options: BackupOptions::default(),
            recording,
        }
    }

    /// A path in the lab's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Requests to the object store since this was last asked.
    pub fn traffic(&self) -> Traffic {
        let mut sum = Traffic::default();
        self.recording.take().into_values().for_each(|traffic| sum += traffic);
        sum
    }

    /// The same, by top folder.
    pub fn traffic_by_folder(&self) -> BTreeMap<String, Traffic> {
        self.recording.take()
    }

    /// Backs up one disk of a VM.
    ///
    /// # Errors
    /// What the backup reports.
    pub fn backup(&self, vm: &str, image: &Path, format: Format) -> Result<Outcome, BackupError> {
        let options = OpenOptions { format: Some(format), ..OpenOptions::default() };
        let chain = Chain::open(image, &options)?;
        let job = Job {
            vm: vm.to_owned(),
            disks: vec![DiskSource { name: "vda".into(), content: DiskContent::Layers(chain) }],
            consistency: Consistency::Offline,
            private: PrivateMetadata::default(),
        };
        let environment = Environment {
            authority: Arc::clone(&self.repository) as Arc<dyn Authority>,
            descriptor: &self.descriptor,
            key: self.key.backup(),
            memos: &self.memos,
            runtime: self.runtime.handle().clone(),
            progress: &Silent,
            cancel: &AtomicBool::new(false),
        };
        backup(&environment, job, &self.options)
    }

    /// A committed snapshot, verified.
    ///
    /// # Panics
    /// If it is not there or does not verify.
    pub fn snapshot(&self, id: SnapshotId) -> Snapshot {
        let name = underlay_store::names::snapshot(&id);
        let stored = self.runtime.block_on(self.repository.snapshots()).expect("snapshots");
        let document =
            stored.into_iter().find(|document| document.name == name).expect("the snapshot is listed");
        Snapshot::open(&id, &self.descriptor.repository, &document.bytes, self.key.backup())
            .expect("it verifies")
    }

    /// Restores a disk to a new file, as the program does.
    ///
    /// # Errors
    /// What the restore reports.
    pub fn restore(&self, root: Root, path: &Path, format: OutputFormat) -> Result<(), RestoreError> {
        let output = create_output(path, format, root.size, false)?;
        let environment = restore::Environment {
            authority: &*self.repository,
            key: &self.key,
            repository: self.descriptor.repository,
            runtime: self.runtime.handle().clone(),
            progress: &Silent,
            cancel: &AtomicBool::new(false),
        };
        restore::restore(&environment, root, &*output, &RestoreOptions::default())?;
        output.finish().map(drop)
    }

    /// The disk's bytes, read in the plainest way: chunk by chunk, nothing planned, nothing shared with restore's code.
    ///
    /// # Panics
    /// If anything is missing, damaged or not what its id says.
    pub fn read(&self, root: &Root) -> Vec<u8> {
        let mut disk = vec![0; usize::try_from(root.size).expect("a small disk")];
        let (mut cursor, mut region) = (Cursor::new(*root), 0);
        let mut nodes = PlainNodes(self);
        while let Some((found, leaf)) =
            cursor.next_leaf(region, &mut nodes, |id| format!("{id}")).expect("a whole tree")
        {
            let Ok(Node::Leaf(runs)) = nodes.node(&leaf) else { panic!("{leaf} is no leaf") };
            let mut at = found as usize * REGION;
            for run in runs {
                let end = (at + run.blocks() * BLOCK).min(disk.len());
                if let Run::Chunk(_, id) = run {
                    let plain = self.chunk(&id, (end - at) as u32);
                    disk[at..end].copy_from_slice(&plain);
                }
                at = end;
            }
            region = found + 1;
        }
        disk
    }

    /// Every chunk and every node of a tree.
    ///
    /// # Panics
    /// If it is not whole.
    pub fn ids_below(&self, root: &Root) -> (Vec<ChunkId>, Vec<NodeId>) {
        let (mut chunks, mut nodes, mut plain) = (Vec::new(), Vec::new(), PlainNodes(self));
        let mut open: Vec<NodeId> = root.node.into_iter().collect();
        while let Some(id) = open.pop() {
            match plain.node(&id).expect("a whole tree") {
                Node::Inner { children, .. } => open.extend(children.iter().flatten()),
                Node::Leaf(runs) => chunks.extend(runs.iter().filter_map(|run| match run {
                    Run::Chunk(_, id) => Some(*id),
                    Run::Zero(_) => None,
                })),
            }
            nodes.push(id);
        }
        (chunks, nodes)
    }

    fn chunk(&self, id: &ChunkId, plain_length: u32) -> Vec<u8> {
        self.runtime.block_on(async {
            let places = self.repository.locate_chunks(&[*id]).await.expect("locations");
            let place = places[0].first().expect("the chunk is stored");
            let whole = PackId::new(PackKind::Data, place.pack);
            let mut length = 48;
            let header = loop {
                let start = self.repository.read_pack(place.pack, 0..length).await.expect("a header");
                match pack::parse_header(&whole, &start).expect("a sound header") {
                    Parsed::Whole(header) => break header,
                    Parsed::Needs(needed) => length = needed as u64,
                }
            };
            let entry = place.entry(*id.as_bytes());
            let range = u64::from(entry.offset)..u64::from(entry.offset + entry.frame_length());
            let frame = self.repository.read_pack(place.pack, range).await.expect("a frame");
            let frame = pack::parse_frame(&whole, &frame, &entry).expect("a sound frame");
            let sealed = header.key_of(&whole, &frame).expect("its key");
            let key = self.key.open_data_key(&self.descriptor.repository, sealed).expect("the key opens");
            let mut decoder =
                ChunkDecoder::new(self.key.backup().clone(), self.descriptor.repository).expect("a decoder");
            let mut plain = Vec::new();
            decoder.decode(&whole, &key, &frame, id, plain_length, &mut plain).expect("a sound chunk");
            plain
        })
    }
}

struct PlainNodes<'a>(&'a Lab);

impl NodeSource for PlainNodes<'_> {
    type Error = String;

    fn node(&mut self, id: &NodeId) -> Result<Node, String> {
        let read = self
            .0
            .runtime
            .block_on(self.0.repository.read_nodes(&[*id]))
            .map_err(|error| error.to_string())?;
        if self.0.key.backup().node_id(&read[0]) != *id {
            return Err(format!("{id} is not its content's id"));
        }
        Node::decode(&read[0])
    }
}
