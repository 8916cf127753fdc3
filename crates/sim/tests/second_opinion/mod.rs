//! The judgement of another checker, `todc_utils`, on the histories of ours.

use std::marker::PhantomData;

use oort_sim::linear::{Model, Operation};
use todc_utils::linearizability::history::{Action, History};
use todc_utils::linearizability::WGLChecker;
use todc_utils::specifications::Specification;

/// Our models in its words.
struct Theirs<M>(PhantomData<M>);

/// An operation with its answer: the other checker does not keep them apart.
type Answered<M> = (<M as Model>::Op, Option<<M as Model>::Answer>);

impl<M: Model> Specification for Theirs<M> {
    type State = M::State;
    type Operation = Answered<M>;

    fn init() -> M::State {
        M::initial()
    }

    fn apply((op, answer): &Answered<M>, state: &M::State) -> (bool, M::State) {
        match M::step(state, op, answer.as_ref()) {
            Some(next) => (true, next),
            None => (false, state.clone()),
        }
    }
}

/// True if the other checker finds an order for `history`.
pub fn is_linearizable<M: Model>(history: &[Operation<M>]) -> bool {
    if history.is_empty() {
        return true; // it takes none without operations
    }
    let mut moments = Vec::new();
    for (at, operation) in history.iter().enumerate() {
        let action = (operation.op.clone(), operation.end.as_ref().map(|(_, answer)| answer.clone()));
        let end_us = operation.end.as_ref().map_or(u64::MAX, |(end_us, _)| *end_us);
        moments.push((operation.start_us, false, at, Action::Call(action.clone())));
        moments.push((end_us, true, at, Action::Response(action)));
    }
    moments.sort_by_key(|(at_us, is_end, at, _)| (*at_us, *is_end, *at));
    // A process of its own for each operation: open ones never end.
    let actions = moments.into_iter().map(|(_, _, at, action)| (at, action)).collect();
    WGLChecker::<Theirs<M>>::is_linearizable(History::from_actions(actions))
}
