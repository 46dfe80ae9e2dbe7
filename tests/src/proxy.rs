use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::Result;

/// What happens to a request.
#[derive(Debug)]
pub enum Fault {
    /// The service gets it and does it; whoever asked hears nothing.
    LoseAnswer,
    /// The service does not get it; this is the whole answer, status line and headers included, once the request has been read.
    Answer(Vec<u8>),
    /// The service does it; what it says in the body of its answer is changed.
    Change(fn(Vec<u8>) -> Vec<u8>),
    /// The same, but that the answer announces more than comes.
    CutOff,
}

type Rule = Box<dyn FnMut(&str) -> Option<Fault> + Send>;

/// A proxy on loopback. Each request has a connection of its own. It ends with the process.
pub struct Proxy {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Starts one before the service at `to`, such as `127.0.0.1:9292`. `rule` is asked about every request by its first words, such as
    /// `POST /v2/images`; none is what passes.
    pub fn start(to: &str, rule: impl FnMut(&str) -> Option<Fault> + Send + 'static) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let (to, rule): (Arc<str>, Rule) = (to.into(), Box::new(rule));
        let (rule, seen) = (Arc::new(Mutex::new(rule)), Arc::new(Mutex::new(Vec::new())));
        let kept = Arc::clone(&seen);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (to, rule, seen) = (Arc::clone(&to), Arc::clone(&rule), Arc::clone(&kept));
                // Whoever hangs up early has a reason, and no request is missed for it.
                thread::spawn(move || pass(client, &to, &rule, &seen).ok());
            }
        });
        Ok(Self { address, seen })
    }

    /// Where it listens, such as `http://127.0.0.1:34567`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The first words of every request so far.
    #[must_use]
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).finish_non_exhaustive()
    }
}

fn pass(client: TcpStream, to: &str, rule: &Mutex<Rule>, seen: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut from_client = BufReader::new(client.try_clone()?);
    let mut head = head(&mut from_client)?;
    let first = head.first().cloned().unwrap_or_default();
    let words = first.rsplit_once(' ').map_or(first.as_str(), |(words, _)| words).to_owned();
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(words.clone());
    let fault = (rule.lock().unwrap_or_else(PoisonError::into_inner))(&words);
    let mut client = client;
    if let Some(Fault::Answer(answer)) = fault {
        read_body(&mut from_client, &head)?;
        return client.write_all(&answer);
    }
    head.retain(|line| !line.to_ascii_lowercase().starts_with("connection:"));
    head.push("Connection: close".into());
    let mut service = TcpStream::connect(to)?;
    service.write_all((head.join("\r\n") + "\r\n\r\n").as_bytes())?;
    let mut body_to = service.try_clone()?;
    thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut body_to);
        let _ = body_to.shutdown(Shutdown::Write);
    });
    match fault {
        None => io::copy(&mut service, &mut client).map(drop)?,
        Some(fault) => {
            let mut from_service = BufReader::new(service);
            let mut head = self::head(&mut from_service)?;
            let mut body = Vec::new();
            from_service.read_to_end(&mut body)?;
            let (body, announced) = match fault {
                Fault::Change(change) => {
                    let body = change(body);
                    let length = body.len();
                    (body, length)
                }
                Fault::CutOff => {
                    let length = body.len();
                    body.truncate(length / 2);
                    (body, length)
                }
                Fault::LoseAnswer | Fault::Answer(_) => return client.shutdown(Shutdown::Both),
            };
            head.retain(|line| !line.to_ascii_lowercase().starts_with("content-length:"));
            head.push(format!("Content-Length: {announced}"));
            client.write_all((head.join("\r\n") + "\r\n\r\n").as_bytes())?;
            client.write_all(&body)?;
        }
    }
    client.shutdown(Shutdown::Both)
}

/// The lines before a body.
fn head(from: &mut impl BufRead) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end() {
            "" => return Ok(lines),
            text => lines.push(text.to_owned()),
        }
    }
}

/// Reads a body to its end.
fn read_body(from: &mut impl BufRead, head: &[String]) -> io::Result<()> {
    let value = |name: &str| {
        let line = head.iter().find(|line| line.to_ascii_lowercase().starts_with(name))?;
        Some(line[name.len()..].trim().to_owned())
    };
    if value("transfer-encoding:").is_none() {
        let length = value("content-length:").and_then(|length| length.parse().ok()).unwrap_or(0);
        return io::copy(&mut from.take(length), &mut io::sink()).map(drop);
    }
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let length = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        io::copy(&mut from.take(length + 2), &mut io::sink())?;
        if length == 0 {
            return Ok(());
        }
    }
}
