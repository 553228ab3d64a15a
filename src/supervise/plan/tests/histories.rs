//! Random histories: events in any order, late, repeated or of no generation, at any pace, and supervisors that hand on.
//! A model checks that every order was due when it came, and that what was due was ordered.

mod due;
mod endings;
mod lives;
mod model;
mod obey;
mod reports;
mod steps;

use proptest::prelude::*;

use super::super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn the_promise_holds_in_every_history(
        limits in steps::limits(),
        begin in steps::begin(),
        history in steps::history(),
        mode in prop_oneof![Just(StopMode::Drain), Just(StopMode::Signal), Just(StopMode::Now)],
    ) {
        let mut world = begin(limits);
        history.into_iter().for_each(|step| world.step(step));
        // From here on, both.
        let mut rested = world.clone();
        rested.come_to_rest();
        rested.end(mode);
        world.end(mode);
    }
}
