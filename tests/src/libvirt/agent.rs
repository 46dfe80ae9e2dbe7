use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::Machine;
use crate::qemu::BOOT_PATIENCE;
use crate::{Error, Result};

/// A program in the guest may run this long.
const PATIENCE: Duration = Duration::from_secs(300);
/// Bytes of one `write_file` command: as base64 they must fit into one argument of `virsh`, 128 KiB.
const PIECE: usize = 64 << 10;

impl Machine {
    /// Waits until the guest agent answers: the guest has booted.
    ///
    /// Fails when the domain is not running; the error quotes the end of the console.
    pub fn wait_for_agent(&self) -> Result<()> {
        let deadline = Instant::now() + BOOT_PATIENCE;
        while let Err(error) = self.agent(&json!({"execute": "guest-ping"})) {
            if !self.is_running()? || Instant::now() > deadline {
                let console = self.console();
                let tail = console.lines().rev().take(30).collect::<Vec<_>>();
                let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
                return Err(error.context(format!("no agent; the console ends:\n{tail}\n")));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Sends one command to the guest agent and returns what the answer holds under `return`.
    pub fn agent(&self, command: &Value) -> Result<Value> {
        // An agent that stopped answering must not stop the test: libvirt's own default is to wait for ever.
        let arguments = ["qemu-agent-command", "--timeout", "60", &self.name, &command.to_string()];
        let answer: Value = serde_json::from_str(&self.virsh.run(arguments)?)
            .map_err(|error| Error::new(format!("the agent's answer: {error}")))?;
        Ok(answer["return"].clone())
    }

    /// Runs a command in the guest's shell, as root, and returns its stdout.
    ///
    /// A non-zero exit code is an error that quotes the output. What the command leaves running must have its output
    /// redirected, or this waits for it too; it ends with the agent, unless `systemd-run` starts it.
    pub fn exec(&self, shell_command: &str) -> Result<String> {
        let output = self.exec_with_input(shell_command, b"")?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// Writes a file in the running guest, as its programs do: the guest may keep it in memory until it syncs.
    pub fn write_file(&self, guest_path: &str, content: &[u8]) -> Result<()> {
        let path = quoted(guest_path);
        self.exec(&format!(": > {path}"))?;
        for piece in content.chunks(PIECE) {
            self.exec_with_input(&format!("cat >> {path}"), piece)?;
        }
        Ok(())
    }

    /// Reads a file of at most 15 MiB in the running guest.
    pub fn read_file(&self, guest_path: &str) -> Result<Vec<u8>> {
        self.exec_with_input(&format!("cat {}", quoted(guest_path)), b"")
    }

    /// SHA-256 of a file in the running guest, in hexadecimal.
    pub fn sha256(&self, guest_path: &str) -> Result<String> {
        let printed = self.exec(&format!("sha256sum < {}", quoted(guest_path)))?;
        Ok(printed.split_whitespace().next().unwrap_or_default().to_owned())
    }

    /// How long the guest has been up. A guest that was started anew begins at zero.
    pub fn uptime(&self) -> Result<Duration> {
        let printed = self.exec("cat /proc/uptime")?;
        let seconds = printed.split_whitespace().next().and_then(|seconds| seconds.parse().ok());
        seconds.map(Duration::from_secs_f64).ok_or_else(|| Error::new(format!("uptime: {printed}")))
    }

    /// Switches the guest off by its own means, and waits for that.
    pub fn shut_down(&self) -> Result<()> {
        // The agent may be gone before it could say how the command ended.
        let arguments = json!({"path": "/bin/systemctl", "arg": ["--no-block", "poweroff"]});
        self.agent(&json!({"execute": "guest-exec", "arguments": arguments}))?;
        self.wait_until_off()
    }

    fn exec_with_input(&self, shell_command: &str, input: &[u8]) -> Result<Vec<u8>> {
        let mut arguments = json!({"path": "/bin/sh", "arg": ["-c", shell_command], "capture-output": true});
        if !input.is_empty() {
            arguments["input-data"] = BASE64.encode(input).into();
        }
        let started = self.agent(&json!({"execute": "guest-exec", "arguments": arguments}))?;
        let status = json!({"execute": "guest-exec-status", "arguments": {"pid": started["pid"]}});
        let deadline = Instant::now() + PATIENCE;
        let mut ended = self.agent(&status)?;
        while ended["exited"] != true {
            if Instant::now() > deadline {
                return Err(Error::new(format!("in the guest: `{shell_command}` does not end")));
            }
            std::thread::sleep(Duration::from_millis(20));
            ended = self.agent(&status)?;
        }
        let decoded = |name: &str| {
            let text = ended[name].as_str().unwrap_or_default();
            BASE64.decode(text).map_err(|error| Error::new(format!("{name}: {error}")))
        };
        let (printed, complaints) = (decoded("out-data")?, decoded("err-data")?);
        if ended["out-truncated"] == true {
            return Err(Error::new(format!("in the guest: `{shell_command}` printed too much")));
        }
        if ended["exitcode"] == 0 {
            return Ok(printed);
        }
        // A killed program has `signal` instead of `exitcode`.
        let how = if ended["exitcode"].is_null() { &ended["signal"] } else { &ended["exitcode"] };
        let text = [printed, complaints].concat();
        let text = String::from_utf8_lossy(&text);
        Err(Error::new(format!("in the guest: `{shell_command}` ended with {how}\n{text}")))
    }
}

/// A word for the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
