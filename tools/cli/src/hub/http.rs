//! Requests to a hub.
//!
//! Redirects are followed here and not by the library: the hub's own answer has headers that the last one lacks, and the
//! token must go to no other host. Nothing waits for ever: names, connections, heads and each read have a limit, and
//! Ctrl-C closes the connection that is waited for.

use super::arriving::Early;
use super::settings::Settings;
use crate::{interrupt, ui};
use anyhow::{Context, anyhow};
use std::fmt;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use ureq::http::{HeaderMap, Uri, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

/// Redirects that one request may take.
const REDIRECTS_MAX: usize = 10;
/// Failures in a row that end a request, or a download: each byte of progress starts the count again.
const TRIES_MAX: u32 = 5;
/// The longest wait between two tries, also where the server asks for more.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// The longest text of an error that is repeated.
const MESSAGE_MAX: usize = 300;

/// Who asks.
pub(super) struct Client<'a> {
    agent: ureq::Agent,
    pub(super) settings: &'a Settings,
    pub(super) stop: &'a AtomicBool,
    pub(super) early: Option<&'a Early>,
    /// Whether any answer has come: then a connection that fails is worth another try.
    answered: AtomicBool,
}

/// What came back, with status 2xx or 416.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: ureq::Body,
}

impl Reply {
    /// A header, if it is there and is text.
    pub(super) fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Why a request had no useful answer.
pub(super) enum Failure {
    /// An answer that says no.
    Status { status: u16, code: String, message: String, retry_after: Option<Duration> },
    /// No answer, or not all of it.
    Network { host: String, why: String, again: bool },
    /// Nothing that asking again would mend.
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

impl Failure {
    /// Whether the hub cannot be reached or is out of order, so that a copy is better than nothing.
    pub(super) fn is_outage(&self) -> bool {
        matches!(self, Self::Network { .. } | Self::Status { status: 429 | 500..=599, .. })
    }

    fn transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            Self::Network { again, .. } => *again,
            Self::Other(_) => false,
        }
    }

    /// As an error, for those that need no explanation of their own.
    pub(super) fn into_error(self) -> anyhow::Error {
        match self {
            Self::Other(error) => error,
            Self::Network { .. } => anyhow!("{self}; check the network, and HTTPS_PROXY if there is a proxy"),
            Self::Status { status: 429, .. } => {
                anyhow!(
                    "{self}: too many requests; wait some minutes, or set HF_TOKEN to be counted by yourself"
                )
            }
            Self::Status { .. } => anyhow!("{self}"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status { status, message, .. } if message.is_empty() => {
                write!(f, "the hub answered {status}")
            }
            Self::Status { status, message, .. } => write!(f, "the hub answered {status} ({message})"),
            Self::Network { host, why, .. } => write!(f, "{host}: {why}"),
            Self::Other(error) => write!(f, "{error:#}"),
        }
    }
}

impl<'a> Client<'a> {
    /// Does some work with a client, whose connections are closed when `stop` is set. What can be used before all of it is
    /// here goes to `early`.
    pub(super) fn with<T>(
        settings: &'a Settings,
        stop: &'a AtomicBool,
        early: Option<&'a Early>,
        work: impl FnOnce(&Client<'a>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let limit = Some(settings.stall);
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("lutite/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls(settings)?)
            .timeout_resolve(limit)
            .timeout_connect(limit)
            // All of the head: a server that sends it byte by byte is stopped too.
            .timeout_recv_response(Some(settings.stall * 2))
            .timeout_per_read(limit)
            .timeout_per_write(limit)
            .build();
        let agent = ureq::Agent::new_with_config(config);
        let client = Client { agent: agent.clone(), settings, stop, early, answered: AtomicBool::new(false) };
        std::thread::scope(|scope| {
            let (done, wait) = channel::<()>();
            scope.spawn(move || {
                while wait.recv_timeout(crate::pull::POLL_EVERY) == Err(RecvTimeoutError::Timeout) {
                    if stop.load(Ordering::Relaxed) {
                        return agent.shutdown();
                    }
                }
            });
            let result = work(&client);
            drop(done);
            // Whatever the closed connection was taken for.
            interrupt::check(stop).and(result)
        })
    }

    /// Whether somebody uses what comes already: then nothing more is said, and what has come stays as it is.
    pub(super) fn is_in_use(&self) -> bool {
        self.early.is_some_and(Early::is_out)
    }

    /// One try of one request, with its redirects.
    pub(super) fn get(&self, url: &str, headers: &[(header::HeaderName, &str)]) -> Result<Reply, Failure> {
        interrupt::check(self.stop)?;
        let mut uri = parse(url)?;
        for _ in 0..=REDIRECTS_MAX {
            let mut request = self.agent.get(&uri).header(header::ACCEPT_ENCODING, "identity");
            for (name, value) in headers {
                request = request.header(name, *value);
            }
            if let Some(token) = &self.settings.token
                && self.is_hub(&uri)?
            {
                request = request.header(header::AUTHORIZATION, token.header());
            }
            let response = request.call().map_err(|error| self.network(&uri, error))?;
            self.answered.store(true, Ordering::Relaxed);
            let (parts, body) = response.into_parts();
            let reply = Reply { status: parts.status.as_u16(), headers: parts.headers, body };
            match reply.status {
                301 | 302 | 303 | 307 | 308 => uri = redirect(&uri, reply.header(header::LOCATION))?,
                200..=299 | 416 => return encoded(reply, &uri),
                _ => return Err(refusal(&reply)),
            }
        }
        Err(anyhow!("{url}: more than {REDIRECTS_MAX} redirects").into())
    }

    /// A whole small answer, with further tries.
    pub(super) fn get_bytes(&self, url: &str, max: u64) -> Result<(Vec<u8>, HeaderMap), Failure> {
        let mut retry = Retry::new(self);
        loop {
            let read = |mut reply: Reply| match reply.body.with_config().limit(max).read_to_vec() {
                Ok(bytes) => Ok((bytes, reply.headers)),
                Err(ureq::Error::BodyExceedsLimit(_)) => {
                    Err(anyhow!("the answer of {url} has more than {max} bytes, which no listing needs")
                        .into())
                }
                Err(error) => Err(self.network(&parse(url)?, error)),
            };
            match self.get(url, &[]).and_then(read) {
                Ok(answer) => return Ok(answer),
                Err(failure) => retry.after(failure)?,
            }
        }
    }

    /// Whether a request to this address may carry the token.
    fn is_hub(&self, uri: &Uri) -> Result<bool, Failure> {
        let hub = parse(&self.settings.endpoint)?;
        Ok(hub.scheme() == uri.scheme() && hub.authority() == uri.authority())
    }

    /// A failure of the network, in plain words.
    pub(super) fn network(&self, uri: &Uri, error: ureq::Error) -> Failure {
        use ureq::{Error, Timeout};
        let answered = self.answered.load(Ordering::Relaxed);
        let stall = self.settings.stall.as_secs_f32();
        let (why, again) = match error {
            Error::HostNotFound => ("no such host, or no network".to_owned(), answered),
            Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
                (format!("no connection within {stall} s"), answered)
            }
            Error::Timeout(_) => (format!("no byte for {stall} s"), true),
            Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                ("the connection was closed too early".to_owned(), true)
            }
            Error::Io(error) if error.to_string().contains("certificate") => return untrusted(uri, &error),
            Error::Rustls(error) => return untrusted(uri, &error),
            Error::Io(error) => {
                // Whatever keeps a first connection from being made, no wait of some seconds will mend.
                let dropped = matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionReset
                        | io::ErrorKind::ConnectionAborted
                        | io::ErrorKind::BrokenPipe
                );
                (error.to_string(), answered || dropped)
            }
            Error::ConnectProxyFailed(why) => (format!("the proxy refuses the connection: {why}"), false),
            Error::Protocol(error) => (format!("not an answer in HTTP ({error})"), true),
            other => (other.to_string(), false),
        };
        Failure::Network { host: uri.authority().map(ToString::to_string).unwrap_or_default(), why, again }
    }
}

fn untrusted(uri: &Uri, error: &dyn fmt::Display) -> Failure {
    let host = uri.authority().map_or("", |a| a.as_str());
    let way_out = "if your network has a certificate of its own, set SSL_CERT_FILE to a file with it in PEM";
    anyhow!("the connection to {host} cannot be made secure ({error}); {way_out}").into()
}

/// The certificates that come with the program, or those of the person.
fn tls(settings: &Settings) -> anyhow::Result<TlsConfig> {
    let Some(file) = &settings.certificates else { return Ok(TlsConfig::default()) };
    let what = || format!("cannot read the certificates in SSL_CERT_FILE ({})", file.display());
    let pem = fs::read(file).with_context(what)?;
    let items = parse_pem(&pem).collect::<Result<Vec<_>, _>>().with_context(what)?;
    let certificate = |item| if let PemItem::Certificate(c) = item { Some(c) } else { None };
    let certificates: Vec<_> = items.into_iter().filter_map(certificate).collect();
    if certificates.is_empty() {
        return Err(anyhow!("there is no certificate in it").context(what()));
    }
    Ok(TlsConfig::builder().root_certs(RootCerts::new_with_certs(&certificates)).build())
}

fn parse(url: &str) -> Result<Uri, Failure> {
    let uri: Uri = url.parse().map_err(|error| anyhow!("{url:?} is no address: {error}"))?;
    match uri.scheme_str() {
        Some("http" | "https") if uri.authority().is_some() => Ok(uri),
        _ => Err(anyhow!("{url:?} is no address that starts with https:// or http://").into()),
    }
}

/// Where a redirect leads: an address, or a path of the same host.
fn redirect(from: &Uri, location: Option<&str>) -> Result<Uri, Failure> {
    let to = location.ok_or_else(|| anyhow!("{from} redirects to nowhere"))?;
    let authority = from.authority().map_or("", |a| a.as_str());
    let absolute = if to.starts_with('/') && !to.starts_with("//") {
        format!("{}://{authority}{to}", from.scheme_str().unwrap_or("https"))
    } else {
        to.to_owned()
    };
    let uri = parse(&absolute)?;
    if from.scheme_str() == Some("https") && uri.scheme_str() != Some("https") {
        return Err(anyhow!("{authority} redirects to an address without encryption; refused").into());
    }
    Ok(uri)
}

/// Bytes in another encoding than the file's would be taken for the file.
fn encoded(reply: Reply, uri: &Uri) -> Result<Reply, Failure> {
    match reply.header(header::CONTENT_ENCODING) {
        None | Some("identity" | "") => Ok(reply),
        Some(other) => {
            // Not all of the address: behind a redirect it may be a key.
            let host = uri.authority().map_or("", |a| a.as_str());
            Err(anyhow!("{host} sent the encoding {other:?}, which was not asked for (is there a proxy?)")
                .into())
        }
    }
}

fn refusal(reply: &Reply) -> Failure {
    // Visible ASCII only, or else it is no text.
    let text = |name: &str| reply.header(name).unwrap_or_default().chars().take(MESSAGE_MAX).collect();
    Failure::Status {
        status: reply.status,
        code: text("x-error-code"),
        message: text("x-error-message"),
        // Of the two forms, hubs send the one in seconds.
        retry_after: reply
            .header(header::RETRY_AFTER)
            .and_then(|s| s.trim().parse().ok())
            .map(Duration::from_secs),
    }
}

/// How often, and after what waits.
pub(super) struct Retry<'a> {
    client: &'a Client<'a>,
    failed: u32,
}

impl<'a> Retry<'a> {
    pub(super) fn new(client: &'a Client<'a>) -> Self {
        Self { client, failed: 0 }
    }

    /// There was progress: what went wrong before no longer counts.
    pub(super) fn reset(&mut self) {
        self.failed = 0;
    }

    /// Waits until it is time to try again, saying so; or gives the failure back.
    pub(super) fn after(&mut self, failure: Failure) -> Result<(), Failure> {
        interrupt::check(self.client.stop)?;
        self.failed += 1;
        if !failure.transient() || self.failed >= TRIES_MAX {
            return Err(failure);
        }
        let asked = match &failure {
            Failure::Status { retry_after, .. } => *retry_after,
            _ => None,
        };
        let wait = asked.unwrap_or(self.client.settings.backoff * (1 << (self.failed - 1)));
        if wait > WAIT_MAX {
            let s = wait.as_secs();
            return Err(anyhow!("{failure}, and asks to wait for {s} s; try again then").into());
        }
        if !self.client.is_in_use() {
            ui::note(format_args!("{failure}; trying again in {:.1} s", wait.as_secs_f32()));
        }
        let end = Instant::now() + wait;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            interrupt::check(self.client.stop)?;
            std::thread::sleep(left.min(crate::pull::POLL_EVERY));
        }
        Ok(())
    }
}
