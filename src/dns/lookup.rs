use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use hickory_resolver::TokioResolver;

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

/// Asks the resolvers of this host (`/etc/resolv.conf`, `/etc/hosts`).
pub struct Lookup {
    resolver: Option<TokioResolver>,
}

impl Lookup {
    /// A host without a usable resolver configuration resolves nothing; that is a state, not a failure to start.
    pub fn of_host() -> Self {
        let built = TokioResolver::builder_tokio().and_then(hickory_resolver::ResolverBuilder::build);
        match built {
            Ok(resolver) => Self { resolver: Some(resolver) },
            Err(error) => {
                tracing::warn!(%error, "the host's resolver configuration cannot be read; endpoint host names stay unresolved");
                Self { resolver: None }
            }
        }
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
