use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::PROJECT;
use super::logs;
use super::site::Site;
use crate::{Error, Result};

const CLIENT: &str = include_str!("client.py");

/// Speaks to the APIs. It ends with the test, because then its standard input does.
#[derive(Debug)]
pub(super) struct Client {
    process: Mutex<Process>,
    folder: PathBuf,
}

#[derive(Debug)]
struct Process {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Client {
    /// Starts it. It logs in when it is first asked for something.
    pub fn start(site: &Site) -> Result<Self> {
        let login = |user: &str, project: &str| {
            json!({
                "username": user, "password": site.password, "project_name": project,
                "user_domain_name": "Default", "project_domain_name": "Default",
            })
        };
        let logins = json!({
            "bootstrap": login("admin", "admin"), "admin": login("admin", PROJECT), PROJECT: login(PROJECT, PROJECT),
        });
        let mut command = Command::new(&site.python);
        command.args(["-c", CLIENT]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        let answers = BufReader::new(answers.ok_or_else(|| Error::new("the client has no stdout"))?);
        let mut process = Process { child, orders, answers };
        process.say(&json!({"auth_url": site.identity(), "logins": logins}))?;
        Ok(Self { process: Mutex::new(process), folder: site.folder.clone() })
    }

    /// One request: its status, 0 when there was no answer, and what was answered.
    pub fn ask(&self, order: &Value) -> Result<(u64, Value)> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        process.say(order)?;
        let mut line = String::new();
        process.answers.read_line(&mut line)?;
        let mut answer: Value = serde_json::from_str(&line)
            .map_err(|error| Error::new(format!("the client answered {line:?} to {order}: {error}")))?;
        Ok((answer["status"].as_u64().unwrap_or(0), answer["body"].take()))
    }

    /// One request that must succeed.
    pub fn succeed(&self, order: &Value) -> Result<Value> {
        match self.ask(order)? {
            (200..=299, body) => Ok(body),
            (status, body) => {
                let failed = format!("{order} was answered {status}: {body}");
                let logs = if status >= 500 { logs::all_in(&self.folder) } else { String::new() };
                Err(Error::new(failed + "\n" + &logs))
            }
        }
    }

    /// The token and the id of one of the logins.
    pub fn token(&self, login: &str) -> Result<Value> {
        self.succeed(&json!({"as": login, "service": "identity", "method": "GET", "path": "token"}))
    }
}

impl Process {
    fn say(&mut self, order: &Value) -> Result<()> {
        let orders = self.orders.as_mut().ok_or_else(|| Error::new("the client takes no orders"))?;
        Ok(orders.write_all(format!("{order}\n").as_bytes())?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A string of a document, empty where there is none.
pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
