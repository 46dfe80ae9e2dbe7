//! A headless Chromium, spoken to over a pipe by the DevTools protocol.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::commands::terminate;
use crate::{Error, Result};

/// A browser with one page, ended when dropped.
#[derive(Debug)]
pub struct Chromium {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    number: u64,
    session: String,
    /// What the page complained about: errors, and what its policy forbade.
    pub complaints: Vec<String>,
    _profile: TempDir,
}

impl Chromium {
    /// Starts it. Certificates are not looked at.
    pub fn start() -> Result<Self> {
        let profile = tempfile::tempdir()?;
        // The protocol wants file descriptors 3 and 4.
        let program = "exec chromium --headless=new --no-sandbox --disable-gpu --ignore-certificate-errors \
                       --no-first-run --hide-scrollbars --user-data-dir=\"$0\" --remote-debugging-pipe about:blank \
                       3<&0 4>&1 </dev/null >/dev/null 2>/dev/null";
        let mut command = Command::new("bash");
        command.args(["-c", program]).arg(profile.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let (to, from) = (child.stdin.take(), child.stdout.take());
        let (Some(to), Some(from)) = (to, from) else { return Err(Error::new("no pipe to chromium")) };
        let from = BufReader::new(from);
        let (number, session, complaints) = (0, String::new(), Vec::new());
        let mut browser = Self { child, to, from, number, session, complaints, _profile: profile };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach)?;
        browser.session = attached["sessionId"].as_str().unwrap_or_default().to_owned();
        for domain in ["Page.enable", "Runtime.enable", "Log.enable", "Network.enable"] {
            browser.call(domain, json!({}))?;
        }
        Ok(browser)
    }

    fn read(&mut self) -> Result<Value> {
        let mut message = Vec::new();
        self.from.read_until(0, &mut message)?;
        message.pop();
        let message: Value = serde_json::from_slice(&message)
            .map_err(|error| Error::new(format!("chromium ended, or said {message:?}: {error}")))?;
        let complaint = match message["method"].as_str() {
            // Not what it would recommend.
            Some("Log.entryAdded") => {
                Some(&message["params"]["entry"]).filter(|entry| entry["level"] != "verbose")
            }
            Some("Runtime.exceptionThrown") => Some(&message["params"]["exceptionDetails"]),
            _ => None,
        };
        self.complaints.extend(complaint.map(Value::to_string));
        Ok(message)
    }

    /// Asks something of the protocol; its answer.
    pub fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.number += 1;
        let mut message = json!({ "id": self.number, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.to.write_all(format!("{message}\0").as_bytes())?;
        self.to.flush()?;
        loop {
            let mut answer = self.read()?;
            if answer["id"] == self.number {
                return match answer.get("error") {
                    Some(error) => Err(Error::new(format!("{method}: {error}"))),
                    None => Ok(answer["result"].take()),
                };
            }
        }
    }

    /// Waits until a page has been loaded.
    pub fn wait_for_page(&mut self) -> Result<()> {
        while self.read()?["method"] != "Page.loadEventFired" {}
        Ok(())
    }

    /// Opens a URL.
    pub fn open(&mut self, url: &str) -> Result<()> {
        let opened = self.call("Page.navigate", json!({ "url": url }))?;
        match opened.get("errorText") {
            Some(error) => Err(Error::new(format!("{url}: {error}"))),
            None => self.wait_for_page(),
        }
    }

    /// Behaves as a screen of that width, in CSS pixels, of somebody who prefers these colours.
    pub fn behave_as(&mut self, width: u32, height: u32, dark: bool) -> Result<()> {
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", features)?;
        let mobile = width < 600;
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile });
        self.call("Emulation.setDeviceMetricsOverride", metrics)?;
        Ok(())
    }

    /// What an expression is on the page.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let asked = json!({ "expression": expression, "returnByValue": true });
        let mut answer = self.call("Runtime.evaluate", asked)?;
        match answer.get("exceptionDetails") {
            Some(error) => Err(Error::new(format!("{expression}: {error}"))),
            None => Ok(answer["result"]["value"].take()),
        }
    }

    /// A picture of all of the page, as PNG.
    pub fn picture(&mut self) -> Result<Vec<u8>> {
        let asked = json!({ "format": "png", "captureBeyondViewport": true });
        let answer = self.call("Page.captureScreenshot", asked)?;
        let data = answer["data"].as_str().unwrap_or_default();
        STANDARD.decode(data).map_err(|error| Error::new(format!("a picture: {error}")))
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        terminate(&mut self.child);
    }
}
