//! Who finds whose grammar, and who makes room.

mod support;

use support::compiler;
use weft_grammar::{Cache, CacheLimits, Grammar, Key, Source};
use weft_types::Digest;

fn source(n: usize) -> Source {
    Source::Regex(format!("a{{{n}}}"))
}

fn key(tenant: &[u8], n: usize) -> Key {
    Key::new(&Digest::of(b"base"), None, tenant, &source(n))
}

fn grammars(count: usize) -> Vec<Grammar> {
    let compiler = compiler();
    (1..=count).map(|n| compiler.compile(&source(n)).unwrap()).collect()
}

#[test]
fn a_key_is_of_one_base_adapter_tenant_and_source() {
    let (base, other) = (Digest::of(b"base"), Digest::of(b"other"));
    let regex = |text: &str| Source::Regex(text.into());
    let keys = [
        Key::new(&base, None, b"one", &regex("a")),
        Key::new(&other, None, b"one", &regex("a")),
        Key::new(&base, Some(&other), b"one", &regex("a")),
        Key::new(&base, None, b"two", &regex("a")),
        Key::new(&base, None, b"on", &regex("ea")),
        Key::new(&base, None, b"one", &regex("b")),
        Key::new(&base, None, b"one", &Source::Lark("a".into())),
    ];
    for (at, key) in keys.iter().enumerate() {
        assert_eq!(keys.iter().position(|other| other == key), Some(at));
    }
    assert_eq!(keys[0], Key::new(&base, None, b"one", &regex("a")));
}

#[test]
fn a_tenant_that_fills_the_cache_pushes_out_its_own() {
    let grammars = grammars(6);
    let cache = Cache::new(CacheLimits { entries_max: 4, bytes_max: u64::MAX });
    cache.put(key(b"quiet", 1), grammars[0].clone());
    for (n, grammar) in grammars.iter().enumerate() {
        cache.put(key(b"busy", n + 1), grammar.clone());
        // Used again and again: stays.
        assert!(cache.get(&key(b"busy", 1)).is_some());
        assert!(cache.size().0 <= 4);
    }
    assert!(cache.get(&key(b"quiet", 1)).is_some());
    let kept: Vec<usize> = (1..=6).filter(|n| cache.get(&key(b"busy", *n)).is_some()).collect();
    assert_eq!(kept, [1, 5, 6]);
}

#[test]
fn bytes_are_bounded_and_a_grammar_larger_than_all_is_not_kept() {
    let grammars = grammars(4);
    let bytes = grammars[0].bytes();
    let cache = Cache::new(CacheLimits { entries_max: 100, bytes_max: 3 * bytes });
    for (n, grammar) in grammars.iter().enumerate() {
        cache.put(key(b"one", n), grammar.clone());
        assert!(cache.size().1 <= 3 * bytes);
    }
    assert!(cache.get(&key(b"one", 3)).is_some() && cache.get(&key(b"one", 0)).is_none());
    let small = Cache::new(CacheLimits { entries_max: 100, bytes_max: 10 });
    small.put(key(b"one", 0), grammars[0].clone());
    assert_eq!(small.size(), (0, 0));
}
