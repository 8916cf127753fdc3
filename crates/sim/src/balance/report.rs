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

#[cfg(test)]
mod tests {
    use super::super::{simulate, svg};
    use super::*;

    #[test]
    fn texts_have_a_line_for_each_size_or_point() {
        let setup = Setup { nodes: 4, replicas: 2, keys: 100, zipf: 0.5, partitions: 64, seed: 3, seeds: 2 };
        let points = simulate(&setup, |_| {});
        let table = table(&setup, &points);
        let caption = "4 nodes, 2 replicas, 100 keys, popularity 1 / rank^0.5, mean of seeds 3 to 4";
        assert!(table.starts_with(&format!("Mean load / greatest load: {caption}\n")), "{table}");
        assert_eq!(table.lines().count(), 4 + sizes(4).len(), "{table}");
        assert!(table.lines().skip(2).all(|line| line.matches('|').count() == 9), "{table}");
        let csv = csv(&points);
        assert_eq!(csv.lines().count(), 1 + points.len());
        assert!(csv.lines().all(|line| line.matches(',').count() == HEADER.matches(',').count()), "{csv}");
        let svg = svg(&setup, &points);
        assert!(svg.contains(caption), "{svg}");
        assert_eq!(svg.matches("<polyline").count(), 3);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
