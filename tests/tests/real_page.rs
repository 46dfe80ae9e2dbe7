//! The server's pages, looked at in Chromium. With `UNDERLAY_PICTURES` set, pictures of them are left in that folder.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use serde_json::Value;
use underlay_tests::chromium::Chromium;
use underlay_tests::commands::run;
use underlay_tests::program::Underlay;
use underlay_tests::server::ServerProgram;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A server with a few machines, and jobs.
struct Site {
    folder: tempfile::TempDir,
    server: ServerProgram,
    operator: Underlay,
}

impl Site {
    fn new(jobs: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        ServerProgram::configure(path, text(&path.join("repository")), "127.0.0.1:0", "").unwrap();
        let second = path.join("second").display().to_string();
        let more = format!("{jobs}\n[[repository]]\nname = \"offsite\"\nlocation = {second:?}\n");
        ServerProgram::configure_more(path, &more).unwrap();
        let server = ServerProgram::serve(path, &[]).unwrap();
        let token = server.token(&["--scope", "admin,backup,maintain,restore"]).unwrap();
        let operator = server.client(path, &token).unwrap();
        operator.run(&["init"]).unwrap();
        Self { folder, server, operator }
    }

    fn image(&self, name: &str, megabytes: u64) -> PathBuf {
        let image = self.folder.path().join(name);
        run("qemu-img", ["create", "-q", "-f", "qcow2", text(&image), "1G"]).unwrap();
        let write = format!("write -P {} 0 {megabytes}M", 1 + megabytes % 250);
        run("qemu-io", ["-f", "qcow2", text(&image), "-c", &write]).unwrap();
        image
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.server.address)
    }

    /// A browser in which somebody has signed in, by the form.
    fn visitor(&self, scopes: &[&str]) -> Chromium {
        let mut browser = Chromium::start().unwrap();
        browser.open(&self.url("/")).unwrap();
        assert_eq!(browser.evaluate("location.pathname").unwrap(), "/login");
        let token = self.server.token(scopes).unwrap();
        sign_in(&mut browser, &token);
        browser
    }
}

fn sign_in(browser: &mut Chromium, token: &str) {
    let fill = format!(
        "document.querySelector('#token').value = {token:?}; document.querySelector('main button').click()"
    );
    browser.evaluate(&fill).unwrap();
    browser.wait_for_page().unwrap();
}

/// The page's words, as they are seen.
fn words(browser: &mut Chromium) -> String {
    browser.evaluate("document.body.innerText").unwrap().as_str().unwrap().to_owned()
}

/// Nothing is cut off at the right, and nothing was forbidden or failed.
fn expect_well_made(browser: &mut Chromium, width: u32) {
    let widths = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]";
    let widths = browser.evaluate(widths).unwrap();
    assert_eq!(widths[1], width, "the screen");
    assert!(widths[0].as_u64() <= widths[1].as_u64(), "wider than the screen: {widths}");
    assert_eq!(browser.complaints, Vec::<String>::new());
}

/// The contrast of every text with what is behind it: the least, and whose.
const CONTRAST: &str = r"(() => {
    const light = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 });
        return .2126 * r + .7152 * g + .0722 * b };
    const parse = s => (s.match(/[\d.]+/g) || []).map(Number);
    const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
        if (c.length === 3 || c[3] > 0) return c } return [255, 255, 255] };
    let least = [99, ''];
    for (const e of document.querySelectorAll('body *')) {
        if (e.closest('svg') || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
        const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))];
        const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        if (ratio < least[0]) least = [ratio, e.outerHTML.slice(0, 200)];
    }
    return least })()";

/// Looks at the page on a desk and on a telephone, in light and dark.
fn look(browser: &mut Chromium, name: &str) {
    for (screen, width, height, dark) in [
        ("light", 1200, 800, false),
        ("dark", 1200, 800, true),
        ("phone", 360, 740, false),
        ("phone-dark", 360, 740, true),
    ] {
        browser.behave_as(width, height, dark).unwrap();
        let ground = browser.evaluate("getComputedStyle(document.documentElement).backgroundColor").unwrap();
        let levels: Vec<u32> = ground.as_str().unwrap()[4..]
            .trim_end_matches(')')
            .split(", ")
            .map(|n| n.parse().unwrap())
            .collect();
        assert_eq!(levels.iter().sum::<u32>() < 300, dark, "{ground}");
        expect_well_made(browser, width);
        let contrast = browser.evaluate(CONTRAST).unwrap();
        assert!(contrast[0].as_f64().unwrap() >= 4.5, "{name} {screen}: {contrast}");
        if let Some(folder) = std::env::var_os("UNDERLAY_PICTURES") {
            let path = Path::new(&folder).join(format!("{name}-{screen}.png"));
            std::fs::write(path, browser.picture().unwrap()).unwrap();
        }
    }
}

const JOBS: &str = "[[repository.job]]\nkind = \"scrub\"\nevery = \"1d\"\n[[repository.job]]\nkind = \"gc\"\nat = \"04:30\"\n";

#[test]
fn what_there_is_and_what_failed_is_seen_on_every_screen() {
    let site = Site::new(JOBS);
    let odd =
        "<b>ödd & \"long\"<i> machine of a name without an end 0123456789012345678901234567890123456789";
    let image = site.image("web.qcow2", 8);
    for vm in ["web-01", "db-main", odd] {
        site.operator.backup(vm, &image).unwrap();
    }
    run("qemu-io", ["-f", "qcow2", text(&image), "-c", "write -P 9 20M 3M"]).unwrap();
    site.operator.backup("web-01", &image).unwrap();
    site.operator.run(&["protect", "db-main@latest"]).unwrap();

    let mut browser =
        site.visitor(&["--scope", "maintain", "--repository", "offsite", "--label", "the desk"]);
    assert_eq!(browser.evaluate("location.pathname").unwrap(), "/");
    let said = words(&mut browser);
    for expected in [
        "Nothing needs attention.",
        "vms",
        "There is no repository here yet.",
        "the desk",
        "3.00 GiB of disks",
        "4.00 GiB as full copies",
    ] {
        assert!(said.contains(expected), "{expected:?} is not in {said}");
    }
    look(&mut browser, "index");
    browser.open(&site.url("/repositories/vms")).unwrap();
    let said = words(&mut browser);
    for expected in [odd, "web-01", "db-main", "scrub", "every day", "never"] {
        assert!(said.contains(expected), "{expected:?} is not in {said}");
    }
    look(&mut browser, "repository");
    let marks = "document.querySelectorAll('table.machines rect.protected title').length";
    assert_eq!(browser.evaluate(marks).unwrap(), 1);
    browser.evaluate("[...document.links].find(link => link.textContent.includes('ödd')).click()").unwrap();
    browser.wait_for_page().unwrap();
    assert_eq!(browser.evaluate("document.querySelector('h1').textContent").unwrap(), odd);
    look(&mut browser, "machine");

    // A pack is lost, a check finds it, and that is the first thing that is seen.
    let packs = run("find", [text(&site.folder.path().join("repository/packs")), "-type", "f"]).unwrap();
    std::fs::remove_file(packs.lines().next().unwrap()).unwrap();
    assert!(!site.operator.output(["check", "--scrub"]).unwrap().status.success());
    site.operator.output(["repair"]).unwrap();
    browser.open(&site.url("/")).unwrap();
    let said = words(&mut browser);
    let (attention, repository) = (said.find("Needs attention").unwrap(), said.find("Machines").unwrap());
    assert!(attention < repository && said.contains("lost data") && said.contains("vms / scrub"), "{said}");
    look(&mut browser, "alarms");
    browser.open(&site.url("/repositories/vms")).unwrap();
    look(&mut browser, "repository-alarms");

    // Whoever signs out is out.
    browser.evaluate("document.querySelector('header button').click()").unwrap();
    browser.wait_for_page().unwrap();
    browser.open(&site.url("/repositories/vms")).unwrap();
    assert_eq!(browser.evaluate("location.pathname").unwrap(), "/login");
    sign_in(&mut browser, "ult1_nonsense");
    assert!(words(&mut browser).contains("This is no valid token."));
    browser.complaints.retain(|complaint| !complaint.contains("401"));
    look(&mut browser, "login");
}

#[test]
fn nothing_is_shown_that_the_token_is_not_for() {
    let site = Site::new(JOBS);
    let image = site.image("web.qcow2", 2);
    for vm in ["web-01", "db-main"] {
        site.operator.backup(vm, &image).unwrap();
    }
    let mut browser = site.visitor(&["--scope", "restore", "--vm", "web-*"]);
    let everything = words(&mut browser);
    assert!(!everything.contains("offsite") && !everything.contains("Stored"), "{everything}");
    browser.open(&site.url("/repositories/vms")).unwrap();
    let said = words(&mut browser);
    assert!(said.contains("web-01") && !said.contains("db-main") && !said.contains("scrub"), "{said}");
    for hidden in ["/repositories/offsite", "/repositories/none", "/repositories/vms/machine?name=db-main"] {
        browser.open(&site.url(hidden)).unwrap();
        let said = words(&mut browser);
        assert!(said.contains("Nothing here"), "{hidden}: {said}");
    }
    let cookies = browser.call("Network.getCookies", Value::Object(Default::default())).unwrap();
    let cookie = &cookies["cookies"][0];
    assert_eq!(
        (&cookie["httpOnly"], &cookie["secure"], &cookie["sameSite"]),
        (&true.into(), &true.into(), &"Strict".into())
    );
}
