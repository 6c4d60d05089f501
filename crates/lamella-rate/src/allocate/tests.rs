use super::*;

pub(super) struct Random(pub(super) u64);
impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
    pub(super) fn unit(&mut self) -> f64 {
        self.below(1 << 30) as f64 / (1u64 << 30) as f64
    }
}

/// Arrays whose loss falls by about four with each bit, with jitter, dominated points and sometimes a tie.
pub(super) fn instance(seed: u64, n_arrays: u64, n_points: u64) -> Problem {
    let mut random = Random(seed);
    let offers = (0..n_arrays)
        .map(|i| {
            let (weight, elements) =
                (random.unit().exp2() * 10f64.powf(random.unit() * 2.0), 20 + random.below(200));
            let points = (0..n_points)
                .map(|k| RatePoint {
                    bytes: elements * (k + 1) / 2 + random.below(9),
                    loss: weight * 0.4f64.powi(k as i32) * (0.7 + 0.6 * random.unit()),
                })
                .collect();
            Offer::new(format!("a{i}"), points)
        })
        .collect();
    let problem = Problem::new(offers).unwrap();
    if n_arrays > 2 && seed.is_multiple_of(3) { problem.tied(&[0, 2]).unwrap() } else { problem }
}

/// Every allocation there is.
fn brute(problem: &Problem, budget: u64) -> f64 {
    fn walk(groups: &[Group], left: u64) -> f64 {
        let [group, rest @ ..] = groups else { return 0.0 };
        let fitting = group.points.iter().filter(|point| point.bytes <= left);
        fitting.map(|point| point.loss + walk(rest, left - point.bytes)).fold(f64::INFINITY, f64::min)
    }
    walk(&problem.groups(), budget)
}

fn budget_of(problem: &Problem, random: &mut Random) -> u64 {
    let (low, high) = (problem.smallest_bytes(), problem.largest_bytes());
    low + ((high - low) as f64 * (0.05 + 0.7 * random.unit())) as u64
}

/// Median and worst of loss over the optimum on 200 instances.
fn against_brute_force(allocator: &dyn Allocator) -> (f64, f64) {
    let mut ratios: Vec<f64> = (0..200)
        .map(|seed| {
            let problem = instance(seed, 2 + seed % 5, 2 + seed % 4);
            let budget = budget_of(&problem, &mut Random(seed ^ 77));
            let allocation = allocator.allocate(&problem, budget).unwrap();
            check(&problem, &allocation, budget);
            allocation.loss / brute(&problem, budget)
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    println!("{}: median {:.4}, worst {:.4}", allocator.name(), ratios[100], ratios[199]);
    (ratios[100], ratios[199])
}

fn check(problem: &Problem, allocation: &Allocation, budget: u64) {
    assert!(allocation.bytes <= budget);
    let chosen =
        || problem.offers().iter().zip(&allocation.choices).map(|(offer, &choice)| offer.points[choice]);
    assert_eq!(chosen().map(|p| p.bytes).sum::<u64>(), allocation.bytes);
    assert_eq!(chosen().map(|p| p.loss).sum::<f64>(), allocation.loss);
    for (a, b) in problem.group_of.iter().zip(&allocation.choices) {
        assert_eq!(allocation.choices[*a], *b, "tied arrays share a choice");
    }
}

#[test]
fn dynamic_programming_is_the_optimum_on_200_instances() {
    let (_, worst) = against_brute_force(&Knapsack::default());
    assert!(worst <= 1.0 + 1e-12, "{worst}");
}

#[test]
fn an_integer_program_is_the_optimum_on_200_instances() {
    let (_, worst) = against_brute_force(&IntegerProgram::default());
    assert!(worst <= 1.0 + 1e-9, "{worst}");
}

#[test]
fn evolution_is_within_a_percent_in_the_median() {
    let (median, worst) = against_brute_force(&Evolution::default());
    assert!(median <= 1.01 && worst <= 1.5, "{median}, {worst}");
}

#[test]
fn further_limits_are_kept_at_the_least_loss() {
    for seed in 0..30 {
        let problem = instance(seed, 4, 3);
        let mut random = Random(seed ^ 5);
        let budget = budget_of(&problem, &mut random);
        let costs: Vec<Vec<f64>> =
            (0..4).map(|_| (0..3).map(|k| (1.0 + k as f64) * random.unit()).collect()).collect();
        let cost =
            |choices: &[usize]| choices.iter().zip(&costs).map(|(&choice, costs)| costs[choice]).sum::<f64>();
        let at_most = 3.0;
        let mut best = f64::INFINITY;
        for code in 0..81usize {
            let choices = [code % 3, code / 3 % 3, code / 9 % 3, code / 27];
            let is_tied =
                problem.group_of.iter().zip(&choices).all(|(&group, &choice)| choices[group] == choice);
            let points = || problem.offers.iter().zip(&choices).map(|(offer, &choice)| offer.points[choice]);
            if is_tied && points().map(|p| p.bytes).sum::<u64>() <= budget && cost(&choices) <= at_most {
                best = best.min(points().map(|p| p.loss).sum());
            }
        }
        let program = IntegerProgram::with_limits(vec![Limit { costs: costs.clone(), at_most }]);
        match program.allocate(&problem, budget) {
            Ok(found) => {
                check(&problem, &found, budget);
                assert!(cost(&found.choices) <= at_most + 1e-6);
                assert!((found.loss - best).abs() <= 1e-9 * best, "{} {best}", found.loss);
            }
            Err(error) => {
                assert_eq!(error, AllocationError::OverLimits);
                assert_eq!(best, f64::INFINITY);
            }
        }
    }
    let short = IntegerProgram::with_limits(vec![Limit { costs: Vec::new(), at_most: 1.0 }]);
    assert_eq!(short.allocate(&instance(1, 4, 3), u64::MAX).unwrap_err(), AllocationError::BadLimit);
}

#[test]
fn evolution_finds_what_a_sum_of_losses_hides() {
    // Two arrays whose errors cancel when both are coarse: the sum says otherwise, the measured loss knows.
    let points = || vec![RatePoint { bytes: 10, loss: 4.0 }, RatePoint { bytes: 20, loss: 1.0 }];
    let offers = ["a", "b", "c", "d"].map(|name| Offer::new(name, points())).to_vec();
    let problem = Problem::new(offers).unwrap();
    let measured = |choices: &[usize]| {
        let loss: f64 = choices.iter().map(|&choice| [4.0, 1.0][choice]).sum();
        if choices[0] == 0 && choices[1] == 0 { loss - 6.0 } else { loss }
    };
    let search = |seed| {
        let evolution = Evolution { seed, ..Evolution::default() };
        evolution
            .search(&problem, 60, None, |choices, _, _| Ok::<_, AllocationError>(measured(choices)))
            .unwrap()
    };
    let found = search(3);
    assert_eq!((found.choices.as_slice(), found.loss), (&[0, 0, 1, 1][..], 4.0));
    assert_eq!(search(3), search(3), "same seed, same allocation");
    let hull = Lagrangian.allocate(&problem, 60).unwrap();
    assert!(measured(&hull.choices) > found.loss);
}

#[test]
fn evolution_keeps_a_better_parent_in_the_last_round() {
    let problem = instance(11, 6, 4);
    let budget = budget_of(&problem, &mut Random(2));
    let start = Lagrangian.allocate(&problem, budget).unwrap();
    let rounds = vec![Round { survivors: 4 }, Round { survivors: 1 }];
    let evolution = Evolution { rounds, generations: 20, ..Evolution::default() };
    let sum = |choices: &[usize]| -> f64 {
        problem.offers.iter().zip(choices).map(|(offer, &choice)| offer.points[choice].loss).sum()
    };
    // The first round judges backwards; the last one still never takes a loss.
    let found = evolution
        .search(&problem, budget, Some(&start.choices), |choices, _, round| {
            Ok::<_, AllocationError>(if round == 0 { -sum(choices) } else { sum(choices) })
        })
        .unwrap();
    check(&problem, &Allocation { loss: sum(&found.choices), ..found.clone() }, budget);
    assert!(found.loss <= start.loss);
}

#[test]
fn few_buckets_stay_close_to_the_optimum() {
    let (median, worst) = against_brute_force(&Knapsack::with_buckets(64));
    assert!(median <= 1.0 + 1e-12 && worst <= 1.05, "{median}, {worst}");
}

#[test]
fn greedy_is_within_a_percent_in_the_median() {
    let (median, worst) = against_brute_force(&Greedy);
    assert!(median <= 1.01 && worst <= 2.0, "{median}, {worst}");
}

#[test]
fn lagrangian_is_within_a_percent_in_the_median() {
    let (median, worst) = against_brute_force(&Lagrangian);
    assert!(median <= 1.01 && worst <= 2.0, "{median}, {worst}");
}

#[test]
fn lagrangian_on_convex_offers_is_optimal_at_its_own_bytes() {
    for seed in 0..50 {
        let mut random = Random(seed);
        let offers = (0..5)
            .map(|i| {
                let (weight, n) = (1.0 + 9.0 * random.unit(), 50 + random.below(50));
                let points =
                    (0..4).map(|k| RatePoint { bytes: n * k, loss: weight * 0.25f64.powi(k as i32) });
                Offer::new(format!("a{i}"), points.collect())
            })
            .collect();
        let problem = Problem::new(offers).unwrap();
        let allocation = Lagrangian.allocate(&problem, budget_of(&problem, &mut random)).unwrap();
        let optimum = brute(&problem, allocation.bytes);
        assert!(allocation.loss <= optimum * 1.25, "{} {optimum}", allocation.loss);
    }
}

#[test]
fn all_allocators_agree_at_the_ends_and_above() {
    let allocators: [&dyn Allocator; 5] =
        [&Lagrangian, &Greedy, &Knapsack::default(), &IntegerProgram::default(), &Evolution::default()];
    for seed in 0..20 {
        let problem = instance(seed, 6, 4);
        let least: f64 = problem
            .groups()
            .iter()
            .map(|group| group.points.iter().map(|p| p.loss).fold(f64::INFINITY, f64::min))
            .sum();
        for allocator in allocators {
            let smallest = problem.smallest_bytes();
            let floor = allocator.allocate(&problem, smallest).unwrap();
            assert_eq!(floor.bytes, smallest, "{}", allocator.name());
            let error = allocator.allocate(&problem, smallest - 1).unwrap_err();
            assert_eq!(error, AllocationError::Unreachable { smallest, budget: smallest - 1 });
            let all = allocator.allocate(&problem, u64::MAX).unwrap();
            assert!((all.loss - least).abs() < 1e-9 * least, "{}: {} {least}", allocator.name(), all.loss);
        }
    }
}

#[test]
fn two_thousand_arrays_of_sixteen_points() {
    let problem = instance(7, 2000, 16);
    let (low, high) = (problem.smallest_bytes(), problem.largest_bytes());
    let budget = low + (high - low) / 3;
    let [exact, hull, greedy] =
        [&Knapsack::default() as &dyn Allocator, &Lagrangian, &Greedy].map(|allocator| {
            let allocation = allocator.allocate(&problem, budget).unwrap();
            check(&problem, &allocation, budget);
            allocation.loss
        });
    println!("loss: knapsack {exact:.4}, lagrangian {hull:.4}, greedy {greedy:.4}");
    // With so many arrays the hull is as good as optimal.
    assert!(exact <= hull && greedy <= hull * 1.05, "{exact} {hull} {greedy}");
}

#[test]
fn empty_and_bad_problems() {
    let (program, evolution) = (IntegerProgram::default(), Evolution::default());
    for allocator in [&Knapsack::default() as &dyn Allocator, &Lagrangian, &Greedy, &program, &evolution] {
        let nothing = allocator.allocate(&Problem::new(Vec::new()).unwrap(), 0).unwrap();
        assert_eq!((nothing.choices.len(), nothing.bytes), (0, 0));
    }
    let point = |bytes, loss| RatePoint { bytes, loss };
    let message = |offers: Vec<Offer>| Problem::new(offers).unwrap_err().to_string();
    assert_eq!(message(vec![Offer::new("w", vec![])]), "array `w`: it offers no point");
    assert!(message(vec![Offer::new("w", vec![point(1, f64::NAN)])]).contains("not a finite number"));
    let huge = Offer::new("w", vec![point(u64::MAX, 0.0)]);
    assert!(message(vec![huge.clone(), huge]).contains("exceed 2^64"));
    let uneven =
        vec![Offer::new("q", vec![point(1, 1.0)]), Offer::new("k", vec![point(1, 1.0), point(2, 0.5)])];
    let error = Problem::new(uneven).unwrap().tied(&[0, 1]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "arrays `q` and `k` cannot share a point: they offer different numbers of points"
    );
}
