//! What underlay reads from an image is, byte for byte, what QEMU reads.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its own functions too")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use underlay_client::image::{Chain, Extent, ExtentKind, Format, OpenOptions};
use underlay_tests::images::{ImageCase, ImageKind, Random, flatten, image_kinds};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Disks larger than this are compared where someone says there is data.
const SMALL: u64 = 64 << 20;

#[test]
fn every_kind_of_image_reads_as_qemu_reads_it() {
    let kinds = image_kinds();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(kind) = kinds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = check(kind) {
                        failures.lock().unwrap().push(format!("{}: {error}", kind.name));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn check(kind: &ImageKind) -> Outcome {
    let dir = tempfile::tempdir()?;
    let images = dir.path().join("images");
    fs::create_dir(&images)?;
    let case = kind.build(&images)?;
    let chain = Chain::open(&case.top, &options(&case))?;
    let expected = dir.path().join("expected.raw");
    case.flatten(&expected)?;
    let top = chain.len() - 1;
    if fs::metadata(&expected)?.len() != chain.virtual_size() {
        return Err(format!("virtual size {}", chain.virtual_size()).into());
    }
    if chain.virtual_size() > SMALL {
        check_sparse(&chain, &expected)?;
    } else {
        let expected = fs::read(&expected)?;
        check_reads(&chain, &expected)?;
        check_map(&chain, top, &expected)?;
        check_extents(&chain, &expected)?;
        check_layers(&chain, dir.path())?;
    }
    chain.verify_unchanged()?;
    let again = Chain::open(&case.top, &options(&case))?;
    for layer in 0..chain.len() {
        assert_eq!(chain.layer(layer).identity()?, again.layer(layer).identity()?);
    }
    Ok(())
}

fn options(case: &ImageCase) -> OpenOptions {
    let format = if case.format == "raw" { Format::Raw } else { Format::Qcow2 };
    OpenOptions { format: Some(format), ..OpenOptions::default() }
}

/// Sequential reads of an odd step, small random reads from several threads, and reads past the end.
fn check_reads(chain: &Chain, expected: &[u8]) -> Outcome {
    let top = chain.len() - 1;
    let mut found = vec![0xee; expected.len() + 5000];
    let mut offset = 0;
    for piece in found.chunks_mut(130_000 + 7) {
        chain.read_at(top, offset, piece)?;
        offset += piece.len() as u64;
    }
    same(&found[..expected.len()], expected, 0)?;
    assert!(found[expected.len()..].iter().all(|byte| *byte == 0), "not zero past the end");
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|seed| {
                scope.spawn(move || -> Result<(), String> {
                    let mut random = Random(seed);
                    for _ in 0..100 {
                        let offset = random.below(expected.len() as u64 + 1) as usize;
                        let length = random.below(100_000).min((expected.len() - offset) as u64) as usize;
                        let mut piece = vec![0xee; length];
                        let read = chain.read_at(top, offset as u64, &mut piece);
                        read.map_err(|error| error.to_string())?;
                        same(&piece, &expected[offset..offset + length], offset)?;
                    }
                    Ok(())
                })
            })
            .collect();
        readers.into_iter().try_for_each(|reader| reader.join().unwrap())
    })?;
    let mut beyond = [1; 100];
    chain.read_at(top, u64::MAX - 50, &mut beyond)?;
    assert_eq!(beyond, [0; 100]);
    Ok(())
}

/// `map` covers what it is asked, in order, and never calls zero what is not.
fn check_map(chain: &Chain, index: usize, expected: &[u8]) -> Outcome {
    let mut random = Random(5);
    let whole = expected.len() as u64;
    for round in 0..20 {
        let offset = if round == 0 { 0 } else { random.below(whole + 1000) };
        let length = if round == 0 { whole } else { random.below(whole + 1000) };
        let mut position = offset;
        let mut last = None;
        for extent in chain.map(index, offset, length)? {
            assert!(
                extent.offset == position && extent.length > 0 && last != Some(extent.kind),
                "{extent:?}"
            );
            let range = (position.min(whole) as usize)..(extent.end().min(whole) as usize);
            if extent.kind == ExtentKind::Zero && expected[range].iter().any(|byte| *byte != 0) {
                return Err(format!("{extent:?} is not zero").into());
            }
            position = extent.end();
            last = Some(extent.kind);
        }
        assert_eq!(position, offset + length);
    }
    Ok(())
}

/// The layers' own extents, applied from the base up, make the flattened disk.
fn check_extents(chain: &Chain, expected: &[u8]) -> Outcome {
    let mut disk: Vec<u8> = Vec::new();
    for index in 0..chain.len() {
        let size = chain.layer(index).virtual_size();
        disk.resize(size as usize, 0);
        let mut last: Option<Extent> = None;
        for extent in chain.extents(index)? {
            let extent = extent?;
            if let Some(last) = last {
                let coalesced = last.end() < extent.offset || last.kind != extent.kind;
                assert!(last.end() <= extent.offset && coalesced, "{last:?} {extent:?}");
            }
            assert!(extent.length > 0 && extent.end() <= size, "{extent:?}");
            let piece = &mut disk[extent.offset as usize..extent.end() as usize];
            match extent.kind {
                ExtentKind::Zero => piece.fill(0),
                ExtentKind::Data => chain.read_at(index, extent.offset, piece)?,
            }
            last = Some(extent);
        }
    }
    Ok(same(&disk, expected, 0)?)
}

/// Each lower layer, read through the chain, is what QEMU makes of that layer's file.
fn check_layers(chain: &Chain, dir: &Path) -> Outcome {
    for index in 0..chain.len() - 1 {
        let layer = chain.layer(index);
        let flat = dir.join("layer.raw");
        flatten(layer.path(), if layer.format() == Format::Raw { "raw" } else { "qcow2" }, &flat)?;
        let expected = fs::read(&flat)?;
        assert_eq!(expected.len() as u64, layer.virtual_size());
        let mut found = vec![0xee; expected.len()];
        chain.read_at(index, 0, &mut found)?;
        same(&found, &expected, 0).map_err(|error| format!("layer {index}: {error}"))?;
        check_map(chain, index, &expected)?;
    }
    Ok(())
}

fn check_sparse(chain: &Chain, expected: &Path) -> Outcome {
    let file = File::open(expected)?;
    let top = chain.len() - 1;
    let mut data = 0;
    for extent in chain.map(top, 0, chain.virtual_size())? {
        if extent.kind == ExtentKind::Data {
            data += extent.length;
            let mut found = vec![0xee; extent.length as usize];
            let mut wanted = found.clone();
            chain.read_at(top, extent.offset, &mut found)?;
            file.read_exact_at(&mut wanted, extent.offset)?;
            same(&found, &wanted, extent.offset as usize)?;
        }
    }
    let allocated = file.metadata()?.blocks() * 512;
    assert!(data > 0 && data >= allocated.saturating_sub(16 << 10), "{data} of data, {allocated} expected");
    Ok(())
}

fn same(found: &[u8], expected: &[u8], start: usize) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    let at = found.iter().zip(expected).position(|(left, right)| left != right);
    Err(format!("differs at {:?} (lengths {} and {})", at.map(|at| at + start), found.len(), expected.len()))
}
