//! The points as texts: a table to read, CSV to compute with.

use std::fmt::Write;

use oort_core::placement::Strategy;

use super::{of_strategy, sizes, Point, Setup};

const HEADER: &str = "strategy,tokens_per_node,partitions,entries,encoded_bytes,efficiency,efficiency_min,\
                      efficiency_max,deviation";

/// What was simulated, in a line.
pub(super) fn caption(setup: &Setup) -> String {
    let Setup { nodes, replicas, keys, zipf, seed, seeds, .. } = setup;
    let popularity = match *zipf {
        0.0 => "all as popular".to_string(),
        exponent => format!("popularity 1 / rank^{exponent}"),
    };
    let last = seed.wrapping_add(*seeds as u64 - 1);
    let which = if *seeds == 1 { format!("seed {seed}") } else { format!("seeds {seed} to {last}") };
    format!("{nodes} nodes, {replicas} replicas, {keys} keys, {popularity}, mean of {which}")
}

/// A line for each size, in Markdown. A dash stands where strategy 3 would need more partitions than there are slots.
pub fn table(setup: &Setup, points: &[Point]) -> String {
    let mut text = format!(
        "Mean load / greatest load: {}\n\n\
         | tokens per node | tokens | bytes | strategy 1 | strategy 2, Q = {} | Q | bytes | strategy 3 |\n\
         | --: | --: | --: | --: | --: | --: | --: | --: |\n",
        caption(setup),
        setup.partitions,
    );
    let mut third = of_strategy(points, 3);
    let first_and_second = of_strategy(points, 1).zip(of_strategy(points, 2));
    for (size, (first, second)) in sizes(setup.nodes).iter().zip(first_and_second) {
        write!(
            text,
            "| {} | {:.0} | {:.0} | {:.3} | {:.3} | ",
            size.tokens, first.entries, first.encoded_bytes, first.efficiency, second.efficiency
        )
        .expect("writing to memory does not fail");
        text += &match size.partitions.and_then(|_| third.next()) {
            Some(third) => {
                format!("{} | {:.0} | {:.3} |\n", third.partitions, third.encoded_bytes, third.efficiency)
            }
            None => "- | - | - |\n".to_string(),
        };
    }
    text
}

/// A line for each point. Fields without a meaning in a strategy are empty.
pub fn csv(points: &[Point]) -> String {
    let mut text = format!("{HEADER}\n");
    for point in points {
        let (tokens, partitions) = match point.strategy {
            Strategy::TokenRanges { tokens } => (tokens.to_string(), String::new()),
            Strategy::TokensAndPartitions { tokens } => (tokens.to_string(), point.partitions.to_string()),
            Strategy::EqualPartitions => (String::new(), point.partitions.to_string()),
        };
        let Point { entries, encoded_bytes, efficiency, range: (least, greatest), deviation, .. } = point;
        let number = point.strategy.number();
        writeln!(
            text,
            "{number},{tokens},{partitions},{entries:.1},{encoded_bytes:.1},{efficiency:.4},{least:.4},{greatest:.4},{deviation:.4}"
        )
        .expect("writing to memory does not fail");
    }
    text
}
