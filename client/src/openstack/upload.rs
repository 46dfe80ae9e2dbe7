//! A file on its way into an image, as it is made: nothing of it is kept here.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256, SHA384, SHA512};
use bytes::{Bytes, BytesMut};
use reqwest::{Body, Method, StatusCode, header};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::answer::{refusal, unreachable};
use super::catalog::Service;
use super::{Cloud, Image, OpenStackError};

/// Bytes sent at once.
const PART: usize = 1 << 20;
/// Parts that wait for the line.
const WAITING: usize = 4;
/// Looks at an image that is being taken in, and the pause between two.
const LOOKS: u32 = 120;
const LOOK: Duration = Duration::from_millis(500);
/// How long a cloud may take over a file that it has all of, before it answers.
const ANSWER: Duration = Duration::from_secs(1800);

/// What goes down the line. A file that ends without [`Part::End`] was given up, and must not be taken for a whole one.
enum Part {
    Data(Bytes),
    End,
}

/// An upload in progress.
#[derive(Debug)]
pub struct ImageUpload {
    cloud: Cloud,
    id: String,
    parts: Sender<Part>,
    sent: JoinHandle<Result<(), OpenStackError>>,
    seen: Arc<Mutex<Seen>>,
}

/// What has been written so far.
struct Seen {
    bytes: u64,
    /// Clouds choose one of these; nearly all the first.
    digests: [(&'static str, Context); 3],
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seen").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// Writes into an image. What is written is sent with the next flush at the latest.
#[derive(Debug)]
pub struct ImageWriter {
    parts: Sender<Part>,
    buffer: BytesMut,
    seen: Arc<Mutex<Seen>>,
}

impl Cloud {
    /// Begins to send the file of an image. What the writer is given is sent as it comes, in chunks.
    pub fn upload(&self, runtime: &Handle, id: &str) -> (ImageUpload, ImageWriter) {
        let (parts, queue) = channel(WAITING);
        let digests = [("sha512", &SHA512), ("sha256", &SHA256), ("sha384", &SHA384)];
        let digests = digests.map(|(name, algorithm)| (name, Context::new(algorithm)));
        let seen = Arc::new(Mutex::new(Seen { bytes: 0, digests }));
        let sent = runtime.spawn(send(self.clone(), id.to_owned(), queue));
        let writer = ImageWriter { parts: parts.clone(), buffer: BytesMut::new(), seen: Arc::clone(&seen) };
        (ImageUpload { cloud: self.clone(), id: id.to_owned(), parts, sent, seen }, writer)
    }
}

/// Sends what comes down the line.
async fn send(cloud: Cloud, id: String, queue: Receiver<Part>) -> Result<(), OpenStackError> {
    // What is sent comes once, and whether the token is good still may be looked at when it has come: it is made anew before.
    cloud.renew().await?;
    let (request, name, _) =
        cloud.request(Service::Image, Method::PUT, &format!("/images/{id}/file")).await?;
    let body = futures::stream::try_unfold(queue, async |mut queue| match queue.recv().await {
        Some(Part::Data(part)) => Ok(Some((part, queue))),
        Some(Part::End) => Ok(None),
        None => Err(io::Error::other("it was given up")),
    });
    let request =
        request.header(header::CONTENT_TYPE, "application/octet-stream").body(Body::wrap_stream(body));
    let answer = request.send().await.map_err(|error| unreachable(&name, error))?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        StatusCode::UNAUTHORIZED => {
            let problem = "the token ran out while its file was sent".to_owned();
            let hint = "tokens must live longer than an upload takes (`[token] expiration` of Keystone)";
            Err(OpenStackError::State { what: format!("image {id}"), problem, hint })
        }
        _ => Err(refusal(&name, answer).await),
    }
}

impl ImageUpload {
    /// Ends the file, waits until the cloud has it, and holds what the cloud says of it against what was written.
    ///
    /// # Errors
    /// If the cloud did not take it, or has something else. The image is still there then.
    pub async fn finish(self) -> Result<Image, OpenStackError> {
        // If nobody takes it, sending has failed, and says why.
        let _ = self.parts.send(Part::End).await;
        let silent =
            || format!("the cloud has all of its file and says nothing for {} seconds", ANSWER.as_secs());
        timeout(ANSWER, joined(self.sent)).await.map_err(|_| failed(&self.id, silent()))??;
        for _ in 0..LOOKS {
            let image = self.cloud.image(&self.id).await?;
            match image.status.as_str() {
                "active" => return verified(image, &self.seen),
                "saving" | "queued" | "importing" | "uploading" => self.cloud.rest(LOOK).await?,
                other => {
                    let problem = format!("the cloud has taken its file and calls it {other}");
                    return Err(failed(&self.id, problem));
                }
            }
        }
        Err(failed(&self.id, "the cloud has taken its file and does not come to an end with it".into()))
    }

    /// Why the file could not be sent, if that is what ended it; else nothing. Gives it up.
    pub async fn give_up(self) -> Option<OpenStackError> {
        drop(self.parts);
        let given_up = |error: &OpenStackError| matches!(error, OpenStackError::Unreachable { source, .. } if says_given_up(&**source));
        joined(self.sent).await.err().filter(|error| !given_up(error))
    }
}

/// Whether an error goes back to our own giving up.
fn says_given_up(error: &(dyn std::error::Error + 'static)) -> bool {
    error.to_string().contains("it was given up") || error.source().is_some_and(says_given_up)
}

async fn joined(sent: JoinHandle<Result<(), OpenStackError>>) -> Result<(), OpenStackError> {
    sent.await.unwrap_or(Err(OpenStackError::Interrupted))
}

fn failed(id: &str, problem: String) -> OpenStackError {
    OpenStackError::State { what: format!("image {id}"), problem, hint: "look at the log of Glance" }
}

/// Holds the cloud's size and hash against ours.
fn verified(image: Image, seen: &Mutex<Seen>) -> Result<Image, OpenStackError> {
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    if image.size != Some(seen.bytes) {
        let size = image.size.map_or_else(|| "no size".to_owned(), |size| format!("{size} bytes"));
        return Err(failed(
            &image.id,
            format!("the cloud has {size} of the {} bytes that were sent", seen.bytes),
        ));
    }
    let (algorithm, value) = (image.os_hash_algo.as_deref(), image.os_hash_value.as_deref());
    let ours = seen.digests.iter().find(|(name, _)| Some(*name) == algorithm);
    let Some((_, ours)) = ours else {
        let algorithm = algorithm.unwrap_or("nothing");
        return Err(failed(
            &image.id,
            format!("the cloud hashes its file with {algorithm}, which cannot be compared"),
        ));
    };
    if value != Some(&hex::encode(ours.clone().finish().as_ref())) {
        return Err(failed(&image.id, "the cloud's hash of its file is not that of what was sent".into()));
    }
    Ok(image)
}

impl ImageWriter {
    fn send(&mut self) -> io::Result<()> {
        let part = self.buffer.split().freeze();
        if part.is_empty() {
            return Ok(());
        }
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.bytes += part.len() as u64;
            seen.digests.iter_mut().for_each(|(_, digest)| digest.update(&part));
        }
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the cloud takes no more of it");
        self.parts.blocking_send(Part::Data(part)).map_err(gone)
    }
}

impl Write for ImageWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let length = data.len().min(PART - self.buffer.len());
        self.buffer.extend_from_slice(&data[..length]);
        if self.buffer.len() == PART {
            self.send()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(bytes: &[u8]) -> Mutex<Seen> {
        let mut digests = [
            ("sha512", Context::new(&SHA512)),
            ("sha256", Context::new(&SHA256)),
            ("sha384", Context::new(&SHA384)),
        ];
        digests.iter_mut().for_each(|(_, digest)| digest.update(bytes));
        Mutex::new(Seen { bytes: bytes.len() as u64, digests })
    }

    fn image(size: u64, algorithm: Option<&str>, value: &str) -> Image {
        let text = serde_json::json!({ "id": "i", "status": "active", "size": size, "os_hash_algo": algorithm, "os_hash_value": value });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn what_the_cloud_has_must_be_what_was_sent() {
        let hash = hex::encode(aws_lc_rs::digest::digest(&SHA256, b"abc").as_ref());
        let told =
            |size, algorithm, value: &str| verified(image(size, algorithm, value), &seen(b"abc")).map(drop);
        assert!(told(3, Some("sha256"), &hash).is_ok());
        assert!(told(2, Some("sha256"), &hash).unwrap_err().to_string().contains("2 bytes of the 3"));
        assert!(
            told(3, Some("sha512"), &hash).unwrap_err().to_string().contains("not that of what was sent")
        );
        assert!(told(3, Some("md5"), &hash).unwrap_err().to_string().contains("md5"));
        assert!(told(3, None, "").is_err());
    }
}
