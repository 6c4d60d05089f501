use proptest::prelude::*;

use super::*;

fn canonical(text: &str) -> String {
    text.parse::<Recipe>().unwrap().to_string()
}
fn refused(text: &str) -> String {
    text.parse::<Recipe>().unwrap_err().to_string()
}

#[test]
fn canonical_texts() {
    for (text, expected) in [
        ("exact", "exact"),
        (" exact ( ) ", "exact"),
        ("a|b( c = 1 )", "a | b(c=1)"),
        ("house(bits=2.50)", "house(bits=2.5)"),
        (
            "x(a=1e3,b=1E-7,c=0.00001,d=123456789012345678)",
            "x(a=1000, b=1e-7, c=0.00001, d=1.2345678901234568e17)",
        ),
        ("x(a=7%, b=0.1%, c=-3, d=-0)", "x(a=7%, b=0.1%, c=-3, d=0)"),
        ("x(a=1e400%, b=2)", ""),
        ("lowrank(16, space=eigen)", "lowrank(16, space=eigen)"),
        ("gptq(sequential=true, dynamic=false)", "gptq(sequential, dynamic=false)"),
        ("a(inner=b(), other=c)", "a(inner=b(), other=c)"),
        ("a(b | c(1%), d=e | f)", "a(b | c(1%), d=e | f)"),
    ] {
        if expected.is_empty() {
            assert!(text.parse::<Recipe>().is_err(), "{text}");
        } else {
            assert_eq!(canonical(text), expected);
            assert_eq!(canonical(expected), expected);
        }
    }
}

#[test]
fn refusals_mark_the_place() {
    for (text, expected) in [
        ("", "\n  \n  ^ expected a name"),
        ("a |", "\n  a |\n     ^ expected a name"),
        ("a b", "\n  a b\n    ^ expected `|` or the end"),
        ("a(", "\n  a(\n    ^ expected an argument"),
        ("a(b=1", "\n  a(b=1\n       ^ expected `,` or `)`"),
        ("a(b=1,)", "\n  a(b=1,)\n        ^ expected an argument"),
        ("a(b=1, b=2)", "\n  a(b=1, b=2)\n         ^ `b` is given twice"),
        ("a(b=1, 2)", "\n  a(b=1, 2)\n         ^ only the first argument may stand without its name"),
        (
            "a(b=3bit)",
            "\n  a(b=3bit)\n       ^ this does not belong to a number; a word starts with a letter",
        ),
        ("a(b=.5)", "\n  a(b=.5)\n      ^ expected a number, a percentage, a word or a recipe"),
        ("a(b=1e999)", "\n  a(b=1e999)\n      ^ this number is too large"),
        ("a(true)", "\n  a(true)\n    ^ expected an argument; `true` is a value"),
        ("größe", "\n  größe\n    ^ expected `|` or the end"),
    ] {
        assert_eq!(refused(text), format!("a recipe cannot be read{expected}"), "{text}");
    }
}

#[test]
fn length_depth_and_counts_are_bounded() {
    assert!(refused(&"a".repeat(5000)).contains("at most 4096 bytes, this one 5000"));
    assert!(refused(&"a(".repeat(2000)).contains("nest at most 8 levels"));
    assert!(refused(&vec!["a"; 33].join("|")).contains("at most 32 parts"));
    let many = (0..65).map(|i| format!("a{i}")).collect::<Vec<_>>().join(",");
    assert!(refused(&format!("a({many})")).contains("at most 64 arguments"));
    let deep = format!("{}x{}", "a(".repeat(8), ")".repeat(8));
    assert_eq!(canonical(&deep), deep);
}

#[test]
fn getters_say_what_they_take() {
    let recipe: Recipe = "gptq(bits=3.5, groups=maybe, share=120%, order=2, sequential=3)".parse().unwrap();
    let message = |error: RecipeError| error.message;
    assert_eq!(
        message(recipe.integer("bits", 1..=8, 4).unwrap_err()),
        "`bits` is 3.5; it takes a whole number from 1 to 8"
    );
    assert_eq!(
        message(recipe.word("groups", &["static", "dynamic"], "static").unwrap_err()),
        "`groups` is maybe; it takes `static` or `dynamic`"
    );
    assert_eq!(
        message(recipe.number("share", 0.0..=1.0, 0.0).unwrap_err()),
        "`share` is 120%; it takes a number from 0 to 1"
    );
    assert_eq!(
        message(recipe.flag("sequential").unwrap_err()),
        "`sequential` is 3; it takes `true` or `false`"
    );
    assert_eq!(
        message(recipe.reject_unknown(&["bits", "groups"]).unwrap_err()),
        "`gptq` has no argument `share`; it takes `bits` and `groups`"
    );
    assert_eq!(recipe.integer("absent", 1..=8u8, 4).unwrap(), 4);
    assert_eq!(recipe.nested("groups").unwrap(), Some(Recipe::new("maybe")));
    assert!(recipe.nested("order").is_err());
    let error: CodecError = recipe.flag("sequential").unwrap_err().into();
    assert!(error.to_string().starts_with("recipe `gptq(bits=3.5,"), "{error}");
}

#[test]
fn positional_arguments_get_a_name() {
    let recipe: Recipe = "lowrank(16, space=eigen)".parse().unwrap();
    assert_eq!(recipe.get(""), Some(&Value::Number(16.0)));
    assert!(recipe.reject_unknown(&["rank", "space"]).is_err());
    let named = recipe.name_positional("rank").unwrap();
    assert_eq!(named.to_string(), "lowrank(rank=16, space=eigen)");
    let twice: Recipe = "lowrank(16, rank=8)".parse().unwrap();
    assert!(twice.name_positional("rank").is_err());
    assert_eq!(Recipe::new("a").with("b", 1.0.into()).with("", 2.0.into()).to_string(), "a(2, b=1)");
}

#[test]
fn with_replaces_in_place_and_then_chains() {
    let recipe: Recipe = "a(x=1, y=2) | b".parse().unwrap();
    let changed = recipe.with("x", Value::Percent(0.07)).then("c | d".parse().unwrap());
    assert_eq!(changed.to_string(), "a(x=7%, y=2) | b | c | d");
    assert_eq!(canonical(&changed.to_string()), changed.to_string());
}

fn word() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9_-]{0,6}".prop_filter("reserved", |word| word != "true" && word != "false")
}
fn finite() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<f64>().prop_filter("finite", |v| v.is_finite()),
        (-1000i32..1000).prop_map(|v| f64::from(v) / 100.0)
    ]
    .prop_map(|v| v + 0.0)
}
fn recipes() -> impl Strategy<Value = Recipe> {
    let scalar = prop_oneof![
        finite().prop_map(Value::Number),
        // A percentage's text has an exponent two higher, so the largest numbers cannot be written as one.
        finite().prop_map(|v| Value::Percent(v / 1000.0 + 0.0)),
        word().prop_map(Value::Word),
        any::<bool>().prop_map(Value::from),
    ];
    let leaf = (word(), prop::collection::btree_map(word(), scalar.clone(), 0..4)).prop_map(build);
    leaf.prop_recursive(3, 24, 3, move |inner| {
        let value = prop_oneof![scalar.clone(), inner.clone().prop_map(Value::Recipe)];
        let part =
            (word(), prop::collection::btree_map(word(), value, 0..4), prop::option::of(inner.clone()))
                .prop_map(|(name, arguments, first)| {
                    let recipe = build((name, arguments));
                    match first {
                        Some(first) => recipe.with("", Value::Recipe(first)),
                        None => recipe,
                    }
                });
        (part, prop::option::of(inner)).prop_map(|(part, next)| match next {
            Some(next) => part.then(next),
            None => part,
        })
    })
}
fn build((name, arguments): (String, std::collections::BTreeMap<String, Value>)) -> Recipe {
    arguments.into_iter().fold(Recipe::new(name), |recipe, (key, value)| recipe.with(&key, value))
}

proptest! {
    #[test]
    fn display_then_parse_returns_the_recipe(recipe in recipes()) {
        let text = recipe.to_string();
        if text.len() <= 4096 {
            prop_assert_eq!(text.parse::<Recipe>().unwrap(), recipe);
        }
    }
    #[test]
    fn any_text_is_read_or_refused_and_what_is_read_is_stable(text in "[a-c01(),|=%.e+ -]{0,40}|.{0,40}") {
        match text.parse::<Recipe>() {
            Ok(recipe) => prop_assert_eq!(recipe.to_string().parse::<Recipe>().unwrap(), recipe),
            Err(error) => prop_assert!(error.to_string().contains('^')),
        }
    }
}
