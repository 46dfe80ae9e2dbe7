//! What services answer: documents, and complaints in words of their own. None of it is trusted to be short or sound.

use reqwest::{Response, header};
use serde::de::DeserializeOwned;

use super::OpenStackError;
use crate::remote::is_wrong_server;

/// Bytes of an answer that are read. A catalog or a list of a thousand flavors has some hundred thousand.
const ANSWER: usize = 2 << 20;
/// Bytes of a complaint that are read.
const COMPLAINT: usize = 64 << 10;
/// Characters of a service's complaint that are shown.
const MESSAGE: usize = 400;

/// Why there is no answer to a request of that name.
pub(super) fn unreachable(name: &str, error: reqwest::Error) -> OpenStackError {
    let url = name.split_once(' ').map_or(name, |(_, url)| url).to_owned();
    let error = error.without_url();
    match is_wrong_server(&error) {
        true => OpenStackError::Untrusted { url, source: error.into() },
        false => OpenStackError::Unreachable { url, source: error.into() },
    }
}

/// What a service says that does not do what it was asked.
pub(super) async fn refusal(name: &str, mut answer: Response) -> OpenStackError {
    let status = answer.status();
    let elsewhere = answer.headers().get(header::LOCATION).filter(|_| status.is_redirection());
    let elsewhere = elsewhere.map(|url| plain(&String::from_utf8_lossy(url.as_bytes()), MESSAGE));
    let mut text = Vec::new();
    // What of it comes is told.
    while let Ok(Some(part)) = answer.chunk().await {
        text.extend_from_slice(&part[..part.len().min(COMPLAINT - text.len())]);
        if text.len() == COMPLAINT {
            break;
        }
    }
    let message = match (elsewhere, complaint(&text)) {
        (Some(url), _) => format!("it sends us to {url}"),
        (None, message) if message.is_empty() => status.canonical_reason().unwrap_or_default().to_owned(),
        (None, message) => message,
    };
    OpenStackError::Refused { request: name.to_owned(), status: status.as_u16(), message }
}

/// What a service complains of, as one short line; empty if it does not say. Nova says `{"badRequest": {"message": …}}`, Keystone
/// `{"error": {"message": …}}`, Glance HTML.
pub fn complaint(text: &[u8]) -> String {
    let told = serde_json::from_slice::<serde_json::Value>(text).ok();
    let told = told
        .as_ref()
        .and_then(|told| told.as_object()?.values().find_map(|inner| inner.get("message")?.as_str()));
    let text = String::from_utf8_lossy(text);
    let mut in_tag = false;
    let without_tags = told.unwrap_or(&text).chars().map(|character| match character {
        '<' => {
            in_tag = true;
            ' '
        }
        '>' => {
            in_tag = false;
            ' '
        }
        _ if in_tag => ' ',
        other => other,
    });
    plain(&without_tags.collect::<String>(), MESSAGE)
}

/// One line of what somebody else wrote, for a terminal, of so many characters at most.
pub(super) fn plain(text: &str, most: usize) -> String {
    let words = text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty());
    let mut line = String::new();
    for word in words {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        // Characters have four bytes at most.
        if line.len() > 4 * most {
            break;
        }
    }
    line.chars().take(most).collect()
}

/// Reads an answer of JSON.
pub(super) fn parse<T: DeserializeOwned>(request: &str, text: &[u8]) -> Result<T, OpenStackError> {
    serde_json::from_slice(text).map_err(|error| nonsense(request, &error.to_string()))
}

/// An answer to a request of that name that is none.
pub(super) fn nonsense(request: &str, problem: &str) -> OpenStackError {
    OpenStackError::Nonsense { request: request.to_owned(), problem: plain(problem, MESSAGE) }
}

/// The whole of an answer.
pub(super) async fn body(name: &str, mut answer: Response) -> Result<Vec<u8>, OpenStackError> {
    let mut text = Vec::new();
    loop {
        let part = answer.chunk().await.map_err(|error| match error.is_timeout() {
            true => unreachable(name, error),
            false => nonsense(name, &format!("it is cut off after {} bytes", text.len())),
        })?;
        let Some(part) = part else { return Ok(text) };
        if text.len() + part.len() > ANSWER {
            return Err(nonsense(name, &format!("it is longer than {ANSWER} bytes")));
        }
        text.extend_from_slice(&part);
    }
}

/// Whether something may be an id: what is put into URLs.
pub(super) fn is_id(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !text.is_empty() && text.len() <= 255 && text.bytes().all(plain)
}

/// Takes an answer that names its object by an id of that kind.
pub(super) fn with_id<T>(request: &str, id: &str, answer: T) -> Result<T, OpenStackError> {
    match is_id(id) {
        true => Ok(answer),
        false => Err(nonsense(request, &format!("no object has the id {id:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_told_in_the_services_own_words() {
        let nova = br#"{"conflictingRequest": {"code": 409, "message": "Instance x is locked"}}"#;
        assert_eq!(complaint(nova), "Instance x is locked");
        let glance = b"<html><head><title>403 Forbidden</title></head>\n<body>\n<h1>Forbidden</h1> Quota\x07!</body></html>";
        assert_eq!(complaint(glance), "403 Forbidden Forbidden Quota !");
        assert_eq!(complaint(b""), "");
        assert_eq!(complaint("ä".repeat(1000).as_bytes()).chars().count(), MESSAGE);
    }

    #[test]
    fn what_makes_no_sense_is_told_briefly() {
        let text = format!("{{\"x\": \"{}\\u001b[31m\"}}", "y".repeat(10_000));
        let error = parse::<Vec<u8>>("GET http://g/v2", text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("GET http://g/v2: ") && error.len() < 600, "{error}");
        let error = parse::<std::collections::BTreeMap<String, u8>>("GET g", text.as_bytes()).unwrap_err();
        assert!(!error.to_string().contains('\x1b'), "{error}");
    }
}
