//! What services answer: documents, and complaints in words of their own.

use reqwest::Response;
use serde::de::DeserializeOwned;

use super::OpenStackError;

/// Bytes of an answer that are read.
const ANSWER: usize = 16 << 20;
/// Characters of a service's complaint that are shown.
const MESSAGE: usize = 400;

pub(super) fn unreachable(name: &str, error: reqwest::Error) -> OpenStackError {
    let url = name.split_once(' ').map_or(name, |(_, url)| url).to_owned();
    OpenStackError::Unreachable { url, source: error.without_url().into() }
}

/// What a service says that does not do what it was asked.
pub(super) async fn refusal(name: &str, answer: Response) -> OpenStackError {
    let status = answer.status();
    let text = body(name, answer).await.unwrap_or_default();
    let message = message(&text).unwrap_or_else(|| status.canonical_reason().unwrap_or_default().to_owned());
    OpenStackError::Refused { request: name.to_owned(), status: status.as_u16(), message }
}

/// Nova says `{"badRequest": {"message": …}}`, Keystone `{"error": {"message": …}}`, Glance HTML.
fn message(text: &[u8]) -> Option<String> {
    let told = serde_json::from_slice::<serde_json::Value>(text).ok();
    let told = told
        .as_ref()
        .and_then(|told| told.as_object()?.values().find_map(|inner| inner.get("message")?.as_str()));
    let text = String::from_utf8_lossy(text);
    let (mut plain, mut in_tag) = (String::new(), false);
    for character in told.unwrap_or(&text).chars() {
        match character {
            '<' => in_tag = true,
            '>' => in_tag = false,
            _ if in_tag => {}
            other if other.is_control() || other.is_whitespace() => plain.push(' '),
            other => plain.push(other),
        }
    }
    let plain = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    (!plain.is_empty()).then(|| plain.chars().take(MESSAGE).collect())
}

pub(super) async fn read<T: DeserializeOwned>(name: &str, answer: Response) -> Result<T, OpenStackError> {
    let text = body(name, answer).await?;
    serde_json::from_slice(&text)
        .map_err(|error| OpenStackError::Nonsense { request: name.to_owned(), problem: error.to_string() })
}

async fn body(name: &str, mut answer: Response) -> Result<Vec<u8>, OpenStackError> {
    let mut text = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(|error| unreachable(name, error))? {
        if text.len() + part.len() > ANSWER {
            return Err(OpenStackError::Nonsense {
                request: name.to_owned(),
                problem: "it is too long".into(),
            });
        }
        text.extend_from_slice(&part);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_told_in_the_services_own_words() {
        let nova = br#"{"conflictingRequest": {"code": 409, "message": "Instance x is locked"}}"#;
        assert_eq!(message(nova).unwrap(), "Instance x is locked");
        let glance = b"<html><head><title>403 Forbidden</title></head>\n<body>\n<h1>Forbidden</h1> Quota\x07!</body></html>";
        assert_eq!(message(glance).unwrap(), "403 Forbidden Forbidden Quota !");
        assert_eq!(message(b""), None);
        assert_eq!(message("ä".repeat(1000).as_bytes()).unwrap().chars().count(), MESSAGE);
    }
}
