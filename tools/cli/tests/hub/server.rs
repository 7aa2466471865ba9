//! A hub of one repository, `o/r`, that misbehaves when told to. Large files are redirected to a second address, as hubs
//! do it.

use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Files from this size on are large: known by SHA-256, and elsewhere.
const LARGE: usize = 1000;

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn git_sha1(bytes: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// With the query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
    /// Whether it came to the second address.
    pub(crate) elsewhere: bool,
}

impl Request {
    pub(crate) fn is_for(&self, file: &str) -> bool {
        self.path.ends_with(file)
    }
}

/// What to do instead of what is right.
#[derive(Clone, Debug, Default)]
pub(crate) enum Act {
    #[default]
    Right,
    /// Status, headers, body.
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// These bytes and no more.
    Raw(Vec<u8>),
    /// What is right, with another header.
    Header(&'static str, String),
    /// What is right, closed after so many bytes of the body.
    Cut(usize),
    /// What is right, with nothing after so many bytes of the body.
    Stall(usize),
    /// What is right, the rest after so many bytes of the body only when the other end of this is gone.
    Hold(usize, Arc<Mutex<Receiver<()>>>),
    /// What is right, with a pause before each so many bytes of the body.
    Slow(usize),
    /// All of the file, whatever part was asked for.
    Whole,
    /// A head without an end, byte by byte.
    Loris,
    /// All of the file, in chunks.
    Chunked,
}

type Files = Vec<(String, Vec<u8>)>;
/// Of the request and of how many came for the same path before.
type Plan = dyn Fn(&Request, usize) -> Act + Send + Sync;

pub(crate) struct Hub {
    pub(crate) address: String,
    log: Arc<Mutex<Vec<Request>>>,
}

struct Shared {
    files: Files,
    plan: Box<Plan>,
    addresses: [String; 2],
    log: Arc<Mutex<Vec<Request>>>,
}

impl Hub {
    pub(crate) fn good(files: &[(&str, &[u8])]) -> Hub {
        Hub::start(files, |_, _| Act::Right)
    }

    pub(crate) fn start(
        files: &[(&str, &[u8])],
        plan: impl Fn(&Request, usize) -> Act + Send + Sync + 'static,
    ) -> Hub {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = listeners.each_ref().map(|l| format!("http://{}", l.local_addr().unwrap()));
        let log = Arc::new(Mutex::new(Vec::new()));
        let files = files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).collect();
        let hub = Hub { address: addresses[0].clone(), log: log.clone() };
        let shared = Arc::new(Shared { files, plan: Box::new(plan), addresses, log });
        for (i, listener) in listeners.into_iter().enumerate() {
            let shared = shared.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let shared = shared.clone();
                    // A client that goes away is none of our business.
                    std::thread::spawn(move || shared.serve(stream, i == 1));
                }
            });
        }
        hub
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// Requests for bytes of files, at the second address.
    pub(crate) fn downloads(&self) -> Vec<Request> {
        self.requests().into_iter().filter(|r| r.elsewhere).collect()
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream, elsewhere: bool) -> Option<()> {
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
        let first = lines.next()?.ok()?;
        let path = first.split(' ').nth(1)?.to_owned();
        let mut headers = HashMap::new();
        loop {
            let line = lines.next()?.ok()?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let request = Request { path, headers, elsewhere };
        let before = {
            let mut log = self.log.lock().unwrap();
            let before = log.iter().filter(|r| r.path == request.path && r.elsewhere == elsewhere).count();
            log.push(request.clone());
            before
        };
        let act = (self.plan)(&request, before);
        let (status, mut headers, body) = match &act {
            Act::Answer(status, headers, body) => (*status, headers.clone(), body.clone()),
            Act::Raw(bytes) => return stream.write_all(bytes).ok(),
            Act::Loris => {
                for byte in b"HTTP/1.1 200 OK\r\nX-Long: ".iter().chain(std::iter::repeat(&b'x')) {
                    stream.write_all(&[*byte]).ok()?;
                    std::thread::sleep(Duration::from_millis(50));
                }
                return None;
            }
            Act::Whole => self.right(&Request { headers: HashMap::new(), ..request.clone() }),
            _ => self.right(&request),
        };
        if let Act::Header(name, value) = act.clone() {
            headers.retain(|h| h.0 != name);
            headers.push((name, value));
        }
        let mut head = format!("HTTP/1.1 {status} Whatever\r\nConnection: close\r\n");
        if let Act::Chunked = act {
            head.push_str("Transfer-Encoding: chunked\r\n");
        } else if headers.iter().all(|h| h.0 != "Content-Length") {
            headers.push(("Content-Length", body.len().to_string()));
        }
        for (name, value) in &headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
        match act {
            Act::Cut(n) => stream.write_all(&body[..n.min(body.len())]).ok(),
            Act::Stall(n) => {
                stream.write_all(&body[..n.min(body.len())]).ok()?;
                std::thread::sleep(Duration::from_secs(60));
                None
            }
            Act::Hold(n, until) => {
                stream.write_all(&body[..n.min(body.len())]).ok()?;
                let _ = until.lock().unwrap().recv();
                stream.write_all(&body[n.min(body.len())..]).ok()
            }
            Act::Slow(n) => body.chunks(n).try_for_each(|part| {
                std::thread::sleep(Duration::from_millis(100));
                stream.write_all(part).ok()
            }),
            Act::Chunked => {
                for part in body.chunks(10_000) {
                    stream.write_all(format!("{:x}\r\n", part.len()).as_bytes()).ok()?;
                    stream.write_all(part).ok()?;
                    stream.write_all(b"\r\n").ok()?;
                }
                stream.write_all(b"0\r\n\r\n").ok()
            }
            _ => stream.write_all(&body).ok(),
        }
    }

    fn right(&self, request: &Request) -> (u16, Vec<(&'static str, String)>, Vec<u8>) {
        let json = |status, text: String| {
            (status, vec![("Content-Type", "application/json".into())], text.into_bytes())
        };
        let no = |status, code: &str| (status, vec![("X-Error-Code", code.to_owned())], b"no".to_vec());
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        if let Some(at) = path.strip_prefix("/api/models/o/r/revision/") {
            return match at {
                "main" | "v1" | COMMIT => json(200, format!("{{\"sha\":\"{COMMIT}\",\"siblings\":[]}}")),
                _ => no(404, "RevisionNotFound"),
            };
        }
        if path == "/api/models/o/r/refs" {
            return json(200, "{\"branches\":[{\"name\":\"main\"}],\"tags\":[{\"name\":\"v1\"}]}".into());
        }
        if path == "/api/models" && query.contains("author=o&") {
            return json(200, "[{\"id\":\"o/r\"},{\"id\":\"o/another-GGUF\"}]".into());
        }
        if path == format!("/api/models/o/r/tree/{COMMIT}") {
            // Two files to a page.
            let at: usize = query.rsplit_once("cursor=").map_or(0, |c| c.1.parse().unwrap());
            let page: Vec<String> =
                self.files.iter().skip(at).take(2).map(|(p, bytes)| entry(p, bytes)).collect();
            let mut answer = json(200, format!("[{}]", page.join(",")));
            if at + 2 < self.files.len() {
                let next = format!("{}{path}?recursive=true&cursor={}", self.addresses[0], at + 2);
                answer.1.push(("Link", format!("<{next}>; rel=\"next\"")));
            }
            return answer;
        }
        let file = |prefix: &str| {
            let path = path.strip_prefix(prefix)?;
            self.files.iter().find(|f| f.0 == path.replace("%20", " ")).map(|f| f.1.as_slice())
        };
        if let Some(bytes) = file(&format!("/o/r/resolve/{COMMIT}/")) {
            if bytes.len() < LARGE {
                return (200, vec![("ETag", format!("\"{}\"", git_sha1(bytes)))], bytes.to_vec());
            }
            let to = format!(
                "{}/cdn/{}",
                self.addresses[1],
                path.rsplit(COMMIT).next().unwrap().trim_start_matches('/')
            );
            let etag = format!("\"{}\"", sha256(bytes));
            return (302, vec![("Location", to), ("X-Linked-Etag", etag)], Vec::new());
        }
        let Some(bytes) = file("/cdn/").filter(|_| request.elsewhere) else { return no(404, "RepoNotFound") };
        let etag = ("ETag", format!("\"{}\"", sha256(bytes)));
        let from = request
            .headers
            .get("range")
            .map(|r| r.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse::<usize>().unwrap());
        match from {
            None => (200, vec![etag], bytes.to_vec()),
            Some(from) if from < bytes.len() => {
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                (206, vec![etag, ("Content-Range", range)], bytes[from..].to_vec())
            }
            Some(_) => (416, vec![("Content-Range", format!("bytes */{}", bytes.len()))], Vec::new()),
        }
    }
}

/// A file's line in a listing.
pub(crate) fn entry(path: &str, bytes: &[u8]) -> String {
    let (size, oid, path) = (bytes.len(), git_sha1(bytes), path.replace('\\', "\\\\"));
    let lfs = if size < LARGE {
        String::new()
    } else {
        format!(",\"lfs\":{{\"oid\":\"{}\",\"size\":{size},\"pointerSize\":134}}", sha256(bytes))
    };
    format!("{{\"type\":\"file\",\"path\":\"{path}\",\"size\":{size},\"oid\":\"{oid}\"{lfs}}}")
}
