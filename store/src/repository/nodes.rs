//! Reading tree nodes back, a few large reads at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::blocking;
use crate::backend::Backend;
use crate::catalog::{Catalog, Location};
use crate::id::NodeId;
use crate::pack::{self, PackId, PackKind};
use crate::restore::{coalesce, frame_range};
use crate::{Error, Result};

/// Bytes of nodes kept, at most twice.
const CACHE: usize = 24 << 20;
/// Nodes further apart than this are read separately.
const GAP: u64 = 64 << 10;
/// No single read is longer than this.
const LONGEST: u64 = 4 << 20;

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
        {
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
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return Ok(()) };
        let pack = PackId::new(PackKind::Nodes, first.1.pack);
        let start = frame_range(&first.1).start;
        let bytes = self.backend.get_range(&pack.to_string(), start..frame_range(&last.1).end).await?;
        for (id, location) in group {
            let range = frame_range(location);
            let frame = bytes.slice((range.start - start) as usize..(range.end - start) as usize);
            let node =
                frame.slice_ref(pack::parse_frame(&pack, &frame, &location.entry(*id.as_bytes()))?.payload);
            self.cache.lock().unwrap_or_else(PoisonError::into_inner).put(*id, Bytes::copy_from_slice(&node));
            found.insert(*id, node);
        }
        Ok(())
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
