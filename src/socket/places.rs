//! The order in which the kernel keeps the sockets of an SO_REUSEPORT group, which decides what an index leads to. Pure.
//!
//! One that joins comes last; when one leaves, the last takes its place (net/core/sock_reuseport.c).

use serde::{Deserialize, Serialize};

/// A socket of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Member {
    /// The one of the slot with this number.
    Slot(usize),
    /// The one that no generation has.
    Helm,
    /// One that was the helm, and is still open.
    Spare(u32),
    /// One that was a slot's and is of no use any more, but is still open somewhere.
    Discarded(usize),
    /// One of another process, which was there before.
    Foreign,
    /// One that nobody has, for the place of one of those.
    Filler,
}

/// All of them, in the kernel's order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Places(Vec<Member>);

impl Places {
    pub(crate) fn join(&mut self, member: Member) {
        self.0.push(member);
    }

    /// It is shut down, or closed by all.
    pub(crate) fn leave(&mut self, member: Member) {
        if let Some(at) = self.0.iter().position(|other| *other == member) {
            self.0.swap_remove(at);
        }
    }

    /// The order after this one has left and joined again.
    pub(crate) fn with_last(&self, member: Member) -> Places {
        let mut places = self.clone();
        places.leave(member);
        places.join(member);
        places
    }

    /// It is another's from now on, and stays where it is.
    pub(crate) fn rename(&mut self, member: Member, name: Member) {
        if let Some(at) = self.0.iter().position(|other| *other == member) {
            self.0[at] = name;
        }
    }

    /// Where it is.
    pub(crate) fn of(&self, member: Member) -> Option<u32> {
        self.0.iter().position(|other| *other == member).map(|at| at as u32)
    }

    /// The one that takes the place of one that leaves.
    pub(crate) fn last(&self) -> Option<Member> {
        self.0.last().copied()
    }

    /// How many that nobody has are behind all others.
    pub(crate) fn idle_at_end(&self) -> usize {
        let is_idle = |member: &&Member| matches!(member, Member::Helm | Member::Spare(_) | Member::Filler);
        self.0.iter().rev().take_while(is_idle).count()
    }

    /// The order after these have left, where it does not depend on which of them was first.
    pub(crate) fn without(&self, gone: &[Member]) -> Option<Places> {
        if gone.len() > 3 {
            // Too many orders to try.
            return None;
        }
        let orders = orders(gone).into_iter().map(|order| {
            let mut places = self.clone();
            order.into_iter().for_each(|member| places.leave(member));
            places
        });
        let mut orders: Vec<Places> = orders.collect();
        let first = orders.pop()?;
        orders.iter().all(|other| *other == first).then_some(first)
    }
}

/// Every order of these.
fn orders(members: &[Member]) -> Vec<Vec<Member>> {
    if members.is_empty() {
        return vec![vec![]];
    }
    let begin_with = |at: usize| {
        let mut others = members.to_vec();
        let first = others.remove(at);
        orders(&others).into_iter().map(move |rest| [&[first][..], &rest].concat())
    };
    (0..members.len()).flat_map(begin_with).collect()
}

#[cfg(test)]
mod tests {
    use super::Member::{Discarded, Helm, Slot};
    use super::*;

    fn places(members: &[Member]) -> Places {
        Places(members.to_vec())
    }

    #[test]
    fn the_last_takes_the_place_of_one_that_leaves() {
        let mut group = places(&[Slot(0), Slot(1), Slot(2), Helm]);
        group.leave(Slot(1));
        assert_eq!(group, places(&[Slot(0), Helm, Slot(2)]));
        assert_eq!((group.of(Slot(2)), group.of(Slot(1)), group.last()), (Some(2), None, Some(Slot(2))));
        group.join(Slot(1));
        assert_eq!(group, places(&[Slot(0), Helm, Slot(2), Slot(1)]));
        group.rename(Slot(2), Discarded(2));
        assert_eq!(group, places(&[Slot(0), Helm, Discarded(2), Slot(1)]));
    }

    #[test]
    fn when_several_have_left_the_order_is_known_only_where_it_is_the_same_either_way() {
        let group = places(&[Slot(0), Slot(1), Slot(2), Helm]);
        assert_eq!(group.without(&[]), Some(group.clone()));
        assert_eq!(group.without(&[Slot(0)]), Some(places(&[Helm, Slot(1), Slot(2)])));
        // 0 and then 1: helm, 2. 1 and then 0: 2, helm.
        assert_eq!(group.without(&[Slot(0), Slot(1)]), None);
        assert_eq!(places(&[Slot(0), Slot(1), Helm]).without(&[Slot(0), Slot(1)]), Some(places(&[Helm])));
    }
}
