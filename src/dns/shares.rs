use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How many of something scarce each address has: nobody may take all of them.
#[derive(Default)]
pub struct Shares {
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// One of those things, an address's until it is dropped.
pub struct Share {
    shares: Arc<Shares>,
    of: IpAddr,
}

impl Shares {
    fn taken(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Each change of it is one of a number.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more for an address; `None` when it has `max` already.
    pub fn take(self: &Arc<Self>, of: IpAddr, max: usize) -> Option<Share> {
        let mut taken = self.taken();
        let count = taken.entry(of).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Share { shares: self.clone(), of })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.taken();
        if let Some(count) = taken.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_its_share_and_no_other_pays_for_it() {
        let shares = Arc::new(Shares::default());
        let (greedy, modest) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let held: Vec<Share> = (0..3).filter_map(|_| shares.take(greedy, 2)).collect();
        assert_eq!(held.len(), 2);
        assert!(shares.take(modest, 2).is_some());
        drop(held);
        assert!(shares.take(greedy, 2).is_some());
        assert!(shares.taken().is_empty());
    }
}
