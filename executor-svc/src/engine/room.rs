//! Which idle engines go so that another one fits: a pure function.

use std::time::Instant;

/// What the choice sees of a loaded engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Resident {
    /// What it takes.
    pub(super) bytes: u64,
    /// When it was asked for last; `None` while a generation runs or waits in it, or a request is on its way to it.
    pub(super) idle_since: Option<Instant>,
}

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// There would not be with no other engine either.
    Never,
    /// The others are in use.
    Now,
}

/// The places of the engines to unload, the least recently used ones, so that `wanted` bytes fit `total`: as few as do.
pub(super) fn make_room(residents: &[Resident], wanted: u64, total: u64) -> Result<Vec<usize>, NoRoom> {
    if wanted > total {
        return Err(NoRoom::Never);
    }
    let mut used: u64 = residents.iter().map(|resident| resident.bytes).fold(0, u64::saturating_add);
    let mut idle: Vec<(Instant, usize)> = residents
        .iter()
        .enumerate()
        .filter_map(|(index, resident)| resident.idle_since.map(|since| (since, index)))
        .collect();
    idle.sort_unstable();
    let mut chosen = Vec::new();
    let mut idle = idle.into_iter();
    while used.saturating_add(wanted) > total {
        let (_, index) = idle.next().ok_or(NoRoom::Now)?;
        used = used.saturating_sub(residents[index].bytes);
        chosen.push(index);
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Engines of 10 bytes each, idle since so many seconds after the first, or in use.
    fn residents(idle_since: &[Option<u64>]) -> Vec<Resident> {
        let start = Instant::now();
        let since = |seconds| start + Duration::from_secs(seconds);
        idle_since.iter().map(|idle| Resident { bytes: 10, idle_since: idle.map(since) }).collect()
    }

    #[test]
    fn what_fits_sends_nobody_away() {
        assert_eq!(make_room(&residents(&[Some(1), None]), 10, 30), Ok(vec![]));
        assert_eq!(make_room(&[], 30, 30), Ok(vec![]));
    }

    #[test]
    fn the_least_recently_used_go_first_and_no_more_than_must() {
        let engines = residents(&[Some(3), Some(1), Some(2)]);
        assert_eq!(make_room(&engines, 5, 30), Ok(vec![1]));
        assert_eq!(make_room(&engines, 11, 30), Ok(vec![1, 2]));
        assert_eq!(make_room(&engines, 30, 30), Ok(vec![1, 2, 0]));
    }

    #[test]
    fn one_in_use_stays() {
        let engines = residents(&[None, Some(5)]);
        assert_eq!(make_room(&engines, 10, 20), Ok(vec![1]));
        assert_eq!(make_room(&engines, 11, 20), Err(NoRoom::Now));
        assert_eq!(make_room(&engines, 21, 20), Err(NoRoom::Never));
    }
}
