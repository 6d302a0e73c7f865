use std::{
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use hickory_resolver::TokioResolver;

use super::stamp::Stamp;
use crate::ids::DnsName;

/// Longest time that one question may take.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// What a name resolves to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// In the order of the answer; never empty.
    pub ips: Vec<IpAddr>,
    /// Time for which the answer holds.
    pub ttl: Duration,
}

/// What says where the host asks, and what it knows itself.
const CONFIGURATION: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// Asks the resolvers of this host (`/etc/resolv.conf`, `/etc/hosts`).
pub struct Lookup {
    resolver: Option<TokioResolver>,
    read: [Option<Stamp>; 2],
}

fn stamps() -> [Option<Stamp>; 2] {
    CONFIGURATION.map(|path| Stamp::of(Path::new(path)))
}

impl Lookup {
    /// A host without a usable resolver configuration resolves nothing; that is a state, not a failure to start.
    pub fn of_host() -> Self {
        let read = stamps();
        let built = TokioResolver::builder_tokio().and_then(hickory_resolver::ResolverBuilder::build);
        match built {
            Ok(resolver) => Self { resolver: Some(resolver), read },
            Err(error) => {
                tracing::warn!(%error, "the host's resolver configuration cannot be read; endpoint host names stay unresolved");
                Self { resolver: None, read }
            }
        }
    }

    /// False when the configuration is another one by now: servers come and go with a host's networks.
    pub fn is_current(&self) -> bool {
        self.read == stamps()
    }

    /// The addresses of a name.
    ///
    /// # Errors
    /// A sentence for the log; asking again later may succeed.
    pub async fn addresses(&self, name: &DnsName) -> Result<Addresses, String> {
        let resolver = self.resolver.as_ref().ok_or("this host has no resolver configuration")?;
        // The final dot keeps the host's search list out of it: an endpoint means one name.
        let question = resolver.lookup_ip(format!("{name}."));
        let answer = match tokio::time::timeout(ANSWERED_WITHIN, question).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("no answer within {} s", ANSWERED_WITHIN.as_secs())),
        };
        let ips: Vec<IpAddr> = answer.iter().collect();
        if ips.is_empty() {
            return Err("the name has no address".into());
        }
        Ok(Addresses { ips, ttl: answer.valid_until().saturating_duration_since(Instant::now()) })
    }
}
