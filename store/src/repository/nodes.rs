//! Reading tree nodes back, a few large reads at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::blocking;
use crate::backend::Backend;
use crate::catalog::{Catalog, Location};
use crate::id::{NodeId, PackName, SessionId};
use crate::pack::{self, PackId, PackKind};
use crate::restore::{coalesce, frame_range};
use crate::{Error, Result};

/// Bytes of nodes kept, at most twice.
const CACHE: usize = 24 << 20;
/// Nodes further apart than this are read separately.
const GAP: u64 = 64 << 10;
/// No single read is longer than this.
const LONGEST: u64 = 4 << 20;

/// Copies of one node that are looked at: one of each writer.
const COPIES: usize = 256;
/// Nothing longer is a node: a leaf of 512 runs takes 18 KiB.
const LONGEST_NODE: u32 = 64 << 10;

/// Who is to rely on what is read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whose {
    /// A session, and so what it may rely on.
    Session(SessionId),
    /// Nobody is known: all that somebody may rely on.
    Anybody,
}

/// Two generations: when the young one is full it becomes the old one, and the old one goes.
#[derive(Debug, Default)]
struct Cache {
    young: HashMap<NodeId, Bytes>,
    old: HashMap<NodeId, Bytes>,
    bytes: usize,
}

impl Cache {
    fn get(&mut self, id: &NodeId) -> Option<Bytes> {
        if let Some(bytes) = self.young.get(id) {
            return Some(bytes.clone());
        }
        let bytes = self.old.get(id)?.clone();
        self.put(*id, bytes.clone());
        Some(bytes)
    }

    fn put(&mut self, id: NodeId, bytes: Bytes) {
        if self.bytes > CACHE {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        self.bytes += bytes.len() + NodeId::LENGTH;
        self.young.insert(id, bytes);
    }
}

/// Reads nodes by id, through the catalog and a bounded cache.
#[derive(Debug)]
pub(crate) struct NodeReader {
    backend: Backend,
    catalog: Arc<Catalog>,
    cache: Mutex<Cache>,
}

impl NodeReader {
    pub(super) fn new(backend: Backend, catalog: Arc<Catalog>) -> Self {
        Self { backend, catalog, cache: Mutex::default() }
    }

    /// The nodes' encodings, in the order of `ids`. Their checksums are verified, their ids cannot be without a key.
    pub(crate) async fn read(&self, ids: &[NodeId]) -> Result<Vec<Bytes>> {
        let mut found: HashMap<NodeId, Bytes> = HashMap::with_capacity(ids.len());
        let mut missing = Vec::new();
        if self.catalog.is_strict() {
            // What was read may be withdrawn since, and another copy be the genuine one.
            missing.extend(ids);
        } else {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            for id in ids {
                match cache.get(id) {
                    Some(bytes) => drop(found.insert(*id, bytes)),
                    None => missing.push(*id),
                }
            }
        }
        missing.sort_unstable();
        missing.dedup();
        let mut gone = None;
        while !missing.is_empty() {
            match self.fetch(missing.clone(), &mut found).await {
                // A collection may have moved some since they were looked up, and moves them to another pack each time.
                Err(Error::Missing { object }) if gone.as_ref() != Some(&object) => gone = Some(object),
                fetched => fetched?,
            }
            missing.retain(|id| !found.contains_key(id));
        }
        ids.iter()
            .map(|id| found.get(id).cloned().ok_or_else(|| Error::Missing { object: format!("node {id}") }))
            .collect()
    }

    /// Whether a node may have several contents, because writers do not trust each other.
    pub(crate) fn are_doubtful(&self) -> bool {
        self.catalog.is_strict()
    }

    /// Different contents that are stored for each node, the best first; none if it is nowhere. In a repository whose writers trust each
    /// other there is one. Copies that are damaged are left out while there is another.
    pub(crate) async fn copies(&self, ids: &[NodeId], whose: Whose) -> Result<Vec<Vec<Bytes>>> {
        let mut gone = None;
        loop {
            let (catalog, wanted) = (Arc::clone(&self.catalog), ids.to_vec());
            let places = blocking(move || match whose {
                Whose::Session(session) => catalog.trusted_nodes(session, &wanted),
                Whose::Anybody => catalog.node_copies(&wanted),
            });
            match self.contents(ids, &places.await?).await {
                // A collection may have moved some since they were looked up.
                Err(Error::Missing { object }) if gone.as_ref() != Some(&object) => gone = Some(object),
                contents => return contents,
            }
        }
    }

    async fn contents(&self, ids: &[NodeId], places: &[Vec<Location>]) -> Result<Vec<Vec<Bytes>>> {
        let mut wanted: Vec<(usize, NodeId, Location)> = Vec::new();
        for ((at, id), places) in ids.iter().enumerate().zip(places) {
            let nodes = places.iter().filter(|place| place.plain_length <= LONGEST_NODE).take(COPIES);
            wanted.extend(nodes.map(|place| (at, *id, *place)));
        }
        // Stable: of one node's copies in one pack the better one stays first.
        wanted.sort_by_key(|(_, _, place)| (place.pack, place.offset));
        let mut read: HashMap<(usize, PackName, u32), Bytes> = HashMap::new();
        let mut failed: HashMap<usize, Error> = HashMap::new();
        for pack in wanted.chunk_by(|a, b| a.2.pack == b.2.pack) {
            let ranges: Vec<_> = pack.iter().map(|(_, _, place)| frame_range(place)).collect();
            for group in coalesce(&ranges, GAP, LONGEST) {
                let asked: Vec<_> = pack[group.clone()].iter().map(|(_, id, place)| (*id, *place)).collect();
                let together = self.frames(&asked).await;
                for (n, (at, id, place)) in pack[group].iter().enumerate() {
                    let node = match &together {
                        Ok(nodes) => Ok(nodes[n].clone()),
                        Err(_) => self.frames(&[(*id, *place)]).await.map(|mut nodes| nodes.remove(0)),
                    };
                    match node {
                        Ok(node) => drop(read.insert((*at, place.pack, place.offset), node)),
                        Err(error) if error.is_damage() => drop(failed.entry(*at).or_insert(error)),
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        let mut all = Vec::with_capacity(ids.len());
        for (at, places) in places.iter().enumerate() {
            let mut copies: Vec<Bytes> = Vec::new();
            for place in places {
                let copy = read.remove(&(at, place.pack, place.offset));
                copies.extend(copy.filter(|copy| !copies.contains(copy)));
            }
            match failed.remove(&at) {
                Some(error) if copies.is_empty() => return Err(error),
                _ => all.push(copies),
            }
        }
        Ok(all)
    }

    async fn fetch(&self, ids: Vec<NodeId>, found: &mut HashMap<NodeId, Bytes>) -> Result<()> {
        let catalog = Arc::clone(&self.catalog);
        let (ids, places) = blocking(move || catalog.locate_nodes(&ids).map(|places| (ids, places))).await?;
        let mut wanted: Vec<(NodeId, Location)> = Vec::with_capacity(ids.len());
        for (id, places) in ids.iter().zip(&places) {
            let first = places.first().ok_or_else(|| Error::Missing { object: format!("node {id}") })?;
            wanted.push((*id, *first));
        }
        wanted.sort_unstable_by_key(|(_, location)| (location.pack, location.offset));
        for pack in wanted.chunk_by(|a, b| a.1.pack == b.1.pack) {
            let ranges: Vec<_> = pack.iter().map(|(_, location)| frame_range(location)).collect();
            for group in coalesce(&ranges, GAP, LONGEST) {
                if let Err(first) = self.fetch_group(&pack[group.clone()], found).await {
                    self.fetch_elsewhere(&pack[group], &ids, &places, found, first).await?;
                }
            }
        }
        Ok(())
    }

    async fn fetch_group(
        &self,
        group: &[(NodeId, Location)],
        found: &mut HashMap<NodeId, Bytes>,
    ) -> Result<()> {
        let nodes = self.frames(group).await?;
        for ((id, _), node) in group.iter().zip(nodes) {
            self.cache.lock().unwrap_or_else(PoisonError::into_inner).put(*id, Bytes::copy_from_slice(&node));
            found.insert(*id, node);
        }
        Ok(())
    }

    /// What lies at these places of one pack, read at once.
    async fn frames(&self, group: &[(NodeId, Location)]) -> Result<Vec<Bytes>> {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return Ok(Vec::new()) };
        let pack = PackId::new(PackKind::Nodes, first.1.pack);
        let start = frame_range(&first.1).start;
        let bytes = self.backend.get_range(&pack.to_string(), start..frame_range(&last.1).end).await?;
        let mut nodes = Vec::with_capacity(group.len());
        for (id, location) in group {
            let range = frame_range(location);
            let frame = bytes.slice((range.start - start) as usize..(range.end - start) as usize);
            let payload = pack::parse_frame(&pack, &frame, &location.entry(*id.as_bytes()))?.payload;
            nodes.push(frame.slice_ref(payload));
        }
        Ok(nodes)
    }

    /// A node whose first place failed may have others; the first failure is reported if none serves.
    async fn fetch_elsewhere(
        &self,
        group: &[(NodeId, Location)],
        ids: &[NodeId],
        places: &[Vec<Location>],
        found: &mut HashMap<NodeId, Bytes>,
        first: Error,
    ) -> Result<()> {
        let mut first = Some(first);
        for (id, _) in group {
            let places = ids.binary_search(id).map_or(&[][..], |at| &places[at][..]);
            for place in places {
                match self.fetch_group(&[(*id, *place)], found).await {
                    Ok(()) => break,
                    Err(error) => drop(first.get_or_insert(error)),
                }
            }
            if !found.contains_key(id) {
                return Err(first.take().unwrap_or_else(|| Error::Missing { object: format!("node {id}") }));
            }
        }
        Ok(())
    }
}
