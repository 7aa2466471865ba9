//! A stacked file that answers while it arrives.

use super::common::{MODEL, stack};
use super::*;
use lutite_runtime::store::{Directory, Gguf, Stack};
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStderr, ChildStdin};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const STACK: &str = "tiny.gguf";

/// Longer than anything takes.
const LONG: Duration = Duration::from_secs(60);

fn least() -> usize {
    Stack::least_bytes(stack()).unwrap().unwrap() as usize
}

/// A hub with the stacked file that sends so many bytes of it, and the rest when what comes with it is dropped.
fn hub_that_holds(bytes: usize) -> (Hub, Home, Sender<()>) {
    let (gate, until) = gate();
    let (hub, home) = hub_with(move |_| Act::Hold(bytes, until.clone()));
    (hub, home, gate)
}

fn gate() -> (Sender<()>, Arc<Mutex<Receiver<()>>>) {
    let (gate, until) = channel();
    (gate, Arc::new(Mutex::new(until)))
}

fn hub_with(plan: impl Fn(usize) -> Act + Send + Sync + 'static) -> (Hub, Home) {
    let of = move |r: &Request, n: usize| if r.elsewhere { plan(n) } else { Act::Right };
    let hub = Hub::start(&[(STACK, stack())], of);
    let home = Home::at(&hub);
    (hub, home)
}

impl Home {
    fn answer(&self, of: &str) -> Command {
        let mut command = self.lutite(&["run", "-m", of, "-p", "Once", "--chat-template", "none"]);
        // Slow machines are not what these tests are about.
        command.args(["--temp", "0", "-n", "40"]).env("HF_HUB_DOWNLOAD_TIMEOUT", "60");
        command
    }

    /// What the first bytes of the stacked file answer.
    fn answer_of_first(&self, bytes: usize) -> String {
        fs::write(self.path("first.gguf"), &stack()[..bytes]).unwrap();
        works(&mut self.answer("first.gguf")).0
    }

    fn part(&self) -> PathBuf {
        self.blob(&format!("{}.incomplete", sha256(stack())))
    }

    fn has_all(&self) -> bool {
        fs::read(self.pointer(STACK)).is_ok_and(|bytes| bytes == stack())
    }
}

/// A conversation.
struct Chat {
    child: Child,
    input: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStderr>>,
    said: String,
    start: Instant,
}

impl Chat {
    fn start(home: &Home) -> Chat {
        let mut command = home.lutite(&["chat", "-m", "o/r", "--chat-template", "none", "-n", "8"]);
        command.env("HF_HUB_DOWNLOAD_TIMEOUT", "60").stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let (input, stderr) = (child.stdin.take(), child.stderr.take().unwrap());
        let lines = BufReader::new(stderr).lines();
        Chat { child, input, lines, said: String::new(), start: Instant::now() }
    }

    /// The next line; none if it has ended.
    fn line(&mut self) -> Option<String> {
        assert!(self.start.elapsed() < LONG, "{}", self.said);
        let line = self.lines.next()?.unwrap();
        self.said += &format!("{line}\n");
        Some(line)
    }

    /// Reads up to a line with one of these, or to the end.
    fn until(&mut self, parts: &[&str]) -> Option<String> {
        loop {
            let line = self.line()?;
            if parts.iter().any(|part| line.contains(part)) {
                return Some(line);
            }
        }
    }

    /// A question, and how it was answered: the line of figures, or what it says in its place.
    fn ask(&mut self, instead: &str) -> Option<String> {
        // One that has ended does not read.
        let _ = self.input.as_mut().unwrap().write_all(b"/clear\nOnce\n/stats\n");
        self.until(&["answer ", instead])
    }

    /// Asks until that is said.
    fn ask_until(&mut self, part: &str) {
        while !self.ask(part).unwrap().contains(part) {}
    }

    fn end(mut self) -> (Option<i32>, String) {
        drop(self.input.take());
        while self.line().is_some() {}
        (self.child.wait().unwrap().code(), std::mem::take(&mut self.said))
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for(what: impl Fn() -> bool) {
    let end = Instant::now() + LONG;
    while !what() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_least_model_answers_and_what_came_is_kept() {
    let (_hub, home, _gate) = hub_that_holds(least());
    let (answer, said) = works(&mut home.answer("o/r"));
    assert_eq!(answer, home.answer_of_first(least()));
    let kept = format!("{} bytes of the", least());
    holds(&said, &["answering with 0 of 108 blocks while the rest arrives", "; 0 of 108 blocks"]);
    assert!(said.contains(&kept) || said.contains(" MB of the"), "{said}");
    holds(&said, &["of tiny.gguf are here and are kept; the same command goes on from there"]);
    assert_eq!(fs::read(home.part()).unwrap(), stack()[..least()]);

    // The next one begins with what is there, as soon as the hub has begun to send the rest.
    let gguf = Gguf::parse(stack()).unwrap();
    let ten = Directory::base(&gguf).unwrap().stack().file_bytes(10) as usize + 50;
    fs::write(home.part(), &stack()[..ten]).unwrap();
    let (hub, _, _gate) = hub_that_holds(1);
    let home = Home { endpoint: hub.address.clone(), ..home };
    let (answer, said) = works(&mut home.answer("o/r"));
    holds(&said, &["going on after", "answering with 10 of 108 blocks", "; 10 of 108 blocks"]);
    assert_eq!(answer, home.answer_of_first(ten));
    assert_eq!(hub.downloads()[0].headers["range"], format!("bytes={ten}-"));
    assert_eq!(fs::read(home.part()).unwrap(), stack()[..ten + 1]);

    let (hub, _) = hub_with(|_| Act::Right);
    let home = Home { endpoint: hub.address.clone(), ..home };
    works(&mut home.pull("o/r"));
    assert!(home.has_all() && !home.part().exists());
    let (_, said) = works(&mut home.answer("o/r"));
    assert!(said.contains("; 108 of 108 blocks") && !said.contains("answering with"), "{said}");
}

#[test]
fn blocks_come_while_it_answers() {
    let (hub, home, gate) = hub_that_holds(least());
    let mut chat = Chat::start(&home);
    chat.until(&["answering with 0 of 108 blocks"]).unwrap();
    holds(&chat.ask("108 blocks").unwrap(), &["; 0 of 108 blocks"]);
    // Who wants the same file waits.
    let mut pull = home.pull("o/r").stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut waits = BufReader::new(pull.stderr.take().unwrap()).lines().map(Result::unwrap);
    waits.find(|line| line.contains("another pull of tiny.gguf is running; waiting")).unwrap();
    drop(gate);
    chat.ask_until("; 108 of 108 blocks");
    wait_for(|| home.has_all());
    assert!(pull.wait().unwrap().success());
    let (code, said) = chat.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("warning") && !said.contains("are kept"), "{said}");
    assert_eq!(hub.downloads().len(), 1);
}

#[test]
fn a_file_that_turns_out_wrong_ends_the_conversation() {
    let (gate, until) = gate();
    let mut listed = stack().to_vec();
    listed[least()] ^= 1;
    let incomplete = format!("{}.incomplete", sha256(&listed));
    let listing = format!("[{}]", server::entry(STACK, &listed)).into_bytes();
    let hub = Hub::start(&[(STACK, stack())], move |r, _| match r.path.contains("/tree/") {
        true => Act::Answer(200, vec![], listing.clone()),
        false if r.elsewhere => Act::Hold(least(), until.clone()),
        false => Act::Right,
    });
    let home = Home::at(&hub);
    let mut chat = Chat::start(&home);
    chat.until(&["answering with 0 of 108 blocks"]).unwrap();
    chat.ask("error: ").unwrap();
    assert!(home.blob(&incomplete).exists());
    drop(gate);
    chat.ask_until("error: ");
    let (code, said) = chat.end();
    assert_eq!(code, Some(1), "{said}");
    holds(&said, &["error: wrong checksum: tiny.gguf as it came has sha256", "what came was removed"]);
    assert!(!home.blob(&incomplete).exists() && !home.pointer(STACK).exists());
}

#[test]
fn without_the_rest_it_goes_on_with_what_is_there() {
    let (hub, home) = hub_with(|n| Act::Cut(if n == 0 { least() + 1000 } else { 0 }));
    let mut chat = Chat::start(&home);
    chat.until(&["answering with"]).unwrap();
    chat.ask_until("warning: ");
    chat.ask("warning: ").unwrap();
    holds(&chat.ask("warning: ").unwrap(), &["of 108 blocks"]);
    let (code, said) = chat.end();
    assert_eq!(code, Some(0), "{said}");
    holds(&said, &["warning: cannot fetch tiny.gguf; the same command goes on where this ended: 127.0.0.1"]);
    assert!(said.matches("warning").count() == 1 && !said.contains("trying again"), "{said}");
    assert_eq!((hub.downloads().len(), fs::metadata(home.part()).unwrap().len()), (5, least() as u64 + 1000));
}

#[test]
fn a_server_that_only_sends_all_of_it_does_not_touch_what_is_in_use() {
    let (gate, until) = gate();
    let (hub, home) = hub_with(move |n| match n {
        0 => Act::Cut(least() + 1000),
        1 => Act::Whole,
        _ => Act::Hold(least(), until.clone()),
    });
    let mut chat = Chat::start(&home);
    chat.ask_until("warning: cannot fetch tiny.gguf");
    let (code, said) = chat.end();
    assert_eq!(code, Some(0), "{said}");
    let why = "the server starts from the beginning: all of it would have to be fetched again, and a part of it is in use";
    holds(&said, &[why]);
    assert_eq!(fs::read(home.part()).unwrap(), stack()[..least() + 1000]);
    // Before it is in use, that is no harm.
    drop(gate);
    let plan = |n| if n == 0 { Act::Whole } else { Act::Right };
    let (other, _) = hub_with(plan);
    let home = Home { endpoint: other.address.clone(), ..home };
    holds(&works(&mut home.pull("o/r")).1, &["the server starts from the beginning"]);
    assert!(home.has_all() && hub.downloads().len() == 2);
}

#[test]
fn what_lay_there_and_is_damaged_is_not_used() {
    let (_hub, home) = hub_with(|_| Act::Right);
    fs::create_dir_all(home.part().parent().unwrap()).unwrap();
    let mut damaged = stack()[..least() + 1000].to_vec();
    damaged[least() - 100] ^= 1;
    fs::write(home.part(), &damaged).unwrap();
    let (_, said) = works(&mut home.answer("o/r"));
    holds(&said, &["what was here before does not fit; fetching all of it"]);
    works(&mut home.pull("o/r"));
    assert!(home.has_all());
}

#[test]
fn other_files_are_waited_for() {
    let whole = fs::read(MODEL).unwrap();
    let half = whole.len() / 2;
    let broken = move |r: &Request, n: usize| match r.elsewhere {
        true => Act::Cut(if n == 0 { half } else { 0 }),
        false => Act::Right,
    };
    let hub = Hub::start(&[(STACK, &whole)], broken);
    let home = Home::at(&hub);
    holds(&fails(&mut home.answer("o/r")), &["cannot fetch tiny.gguf", "trying again in"]);
    let again = Hub::good(&[(STACK, &whole)]);
    let home = Home { endpoint: again.address.clone(), ..home };
    let (_, said) = works(&mut home.answer("o/r"));
    assert!(said.contains("going on after") && !said.contains("answering with"), "{said}");
    assert_eq!(fs::read(home.pointer(STACK)).unwrap(), whole);
}

#[test]
fn control_c_before_it_answers_ends_the_download() {
    let (_hub, home, _gate) = hub_that_holds(1000);
    let run = home.answer("o/r").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(|| fs::metadata(home.part()).is_ok_and(|part| part.len() == 1000));
    let kill = format!("kill -INT {}", run.id());
    assert!(Command::new("/bin/sh").args(["-c", &kill]).status().unwrap().success());
    let out = run.wait_with_output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!((out.status.code(), out.stdout.len()), (Some(130), 0), "{said}");
    holds(&said, &["1000 bytes of the", "are here and are kept; the same command goes on from there"]);
}
