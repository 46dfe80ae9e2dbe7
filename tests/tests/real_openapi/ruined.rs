//! A repository that may be ruined, with something in it for every operation.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use underlay_client::remote::{RemoteAuthority, RemoteOptions};
use underlay_server::REPOSITORIES;
use underlay_server::tokens::Scope;
use underlay_store::authority::{RepairOptions, SessionGrant, Withdrawal};
use underlay_store::id::{JobId, Root, SessionHandle, SessionId};
use underlay_store::key::Key;
use underlay_store::key::slot::{Argon2id, Slot};
use underlay_store::pack::PackKind;
use underlay_store::progress::Silent;
use underlay_store::snapshot::Timestamp;
use underlay_tests::conformance::Ground;
use underlay_tests::server::{NAME, new_descriptor};

use super::Described;

/// A repository that is yet to be made.
pub const EMPTY: &str = "empty";
const ZEROS: Root = Root { size: 4096, node: None };

/// The repository.
pub struct Ruined {
    /// May do everything.
    pub token: String,
    /// What is in it.
    pub known: Value,
}

struct Filling<'a> {
    described: &'a Described,
    token: String,
    ground: Ground,
}

impl Ruined {
    /// Fills the repository of this server.
    pub async fn fill(described: &Described) -> Self {
        let token = described.token(&Scope::ALL, "*", "*", None);
        let location = described.server.location();
        let options = RemoteOptions { token: token.clone().into(), ..RemoteOptions::default() };
        let authority = std::sync::Arc::new(RemoteAuthority::new(&location, &options).unwrap());
        let (key, descriptor, text) = new_descriptor();
        authority.make(text, Vec::new()).await.unwrap();
        let filling = Filling { described, token, ground: Ground { authority, key, descriptor } };
        let known = filling.fill().await;
        Self { token: filling.token, known }
    }
}

impl Filling<'_> {
    async fn fill(&self) -> Value {
        let (_, kept) = self.ground.backup("kept", 1).await;
        let mut snapshots = Vec::new();
        for number in 0..12 {
            let vm = format!("dropped-{number}");
            let grant = self.ground.authority.open_session(&vm).await.unwrap();
            let (snapshot, document) = self.ground.snapshot(&vm, grant, ZEROS);
            self.ground.authority.commit(grant.session, document).await.unwrap();
            snapshots.push(snapshot);
        }
        self.ground.authority.protect(snapshots[0], true).await.unwrap();
        self.damage().await;
        let mut handles = Vec::new();
        for _ in 0..6 {
            handles.push(self.open("open").await.0);
        }
        let mut commits = Vec::new();
        for _ in 0..6 {
            let (handle, grant) = self.open("committed").await;
            let (_, document) = self.ground.snapshot("committed", grant, ZEROS);
            commits.push(json!({ "handle": handle, "document": text(document) }));
        }
        let key = Key::Restore(self.ground.key.clone());
        let (repository, cheap) = (self.ground.descriptor.repository, Argon2id::CHEAPEST);
        let slot = Slot::create(repository, &key, "x", "", Timestamp::now(), cheap).unwrap();
        json!({
            "handles": handles,
            "commits": commits,
            "snapshots": snapshots,
            "nodes": [kept.leaf],
            "chunks": [kept.chunk],
            "roots": [kept.root, ZEROS],
            "packs": self.packs().await,
            "jobs": self.jobs().await,
            "slot": { "slot": slot.slot, "document": text(slot.seal()) },
            "empty": EMPTY,
            "new": { "descriptor": text(new_descriptor().2), "slots": [] },
        })
    }

    /// A snapshot that lost its only chunk, and is marked.
    async fn damage(&self) {
        let authority = &self.ground.authority;
        let (snapshot, lost) = self.ground.backup("lost", 2).await;
        let damage = Withdrawal {
            chunks: vec![(lost.chunk, lost.pack)],
            roots: vec![lost.root],
            ..Withdrawal::default()
        };
        assert_eq!(authority.withdraw(&damage).await.unwrap().retired, 1);
        authority.repair(&RepairOptions::default(), &Silent).await.unwrap();
        let marked = authority.marked().await.unwrap();
        assert_eq!(marked.iter().map(|marked| marked.snapshot).collect::<Vec<_>>(), [snapshot]);
    }

    /// A session whose handle is known.
    async fn open(&self, vm: &str) -> (SessionHandle, SessionGrant) {
        let handle = SessionHandle::random();
        let opened = self.put(&format!("sessions/{handle}"), &json!({ "vm": vm })).await;
        let opened: Value = serde_json::from_str(&opened).unwrap();
        let session = SessionId::from_hex(opened["session"].as_str().unwrap()).unwrap();
        let time = Timestamp::from_milliseconds(opened["time_ms"].as_i64().unwrap()).unwrap();
        (handle, SessionGrant { session, time })
    }

    /// Packs that a session keeps.
    async fn packs(&self) -> Vec<Value> {
        let authority = &self.ground.authority;
        let session = authority.open_session("packs").await.unwrap().session;
        let (chunks, data) = self.ground.data_pack(self.ground.descriptor.repository, &[3]);
        let (_, nodes) = self.ground.node_pack(chunks[0]);
        let mut packs = Vec::new();
        for (kind, text, pack) in [(PackKind::Data, "data", data), (PackKind::Nodes, "nodes", nodes)] {
            let content = BASE64_STANDARD.encode(&pack);
            let name = authority.put_pack(session, kind, pack).await.unwrap();
            packs.push(json!({ "kind": text, "name": name, "content": content }));
        }
        packs
    }

    /// One of each kind that has ended.
    async fn jobs(&self) -> Vec<JobId> {
        let mut jobs = Vec::new();
        for request in [
            json!({ "kind": "gc", "options": { "dry_run": true, "max_unused": 0.05, "lease_ms": 86_400_000 } }),
            json!({ "kind": "check", "options": { "scrub": true, "budget": null, "suspects": true, "dry_run": false } }),
            json!({ "kind": "repair", "options": { "dry_run": false, "verified": [] } }),
        ] {
            let job = JobId::random();
            self.put(&format!("jobs/{job}"), &request).await;
            jobs.push(job);
        }
        jobs
    }

    async fn put(&self, path: &str, body: &Value) -> String {
        let url = format!("{}/v1/repositories/{NAME}/{path}", self.described.server.url());
        let request = self.described.client.request(Method::PUT, url).bearer_auth(&self.token);
        let answer = request.body(body.to_string()).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {answer:?}");
        answer.text().await.unwrap()
    }
}

/// The route that an operation of a repository is counted as.
pub fn route_of(document: &Value, about: &Value) -> Option<String> {
    let paths = document["paths"].as_object().unwrap();
    let has = |item: &Value| item.as_object().unwrap().values().any(|other| other == about);
    let (path, _) = paths.iter().find(|(_, item)| has(item)).unwrap();
    let route = path.strip_prefix(REPOSITORIES)?;
    Some(if route.is_empty() { "/".to_owned() } else { route.to_owned() })
}

fn text(bytes: impl AsRef<[u8]>) -> String {
    String::from_utf8(bytes.as_ref().to_vec()).unwrap()
}
