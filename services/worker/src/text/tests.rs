use super::*;
use proptest::prelude::*;

/// Feeds the pieces; returns each token's text in order, and the stop index.
fn run(stops: &[&str], include_stop: bool, tokens: &[&[u8]]) -> (Vec<String>, Option<usize>) {
    let mut stream = TextStream::new(stops.iter().map(|stop| (*stop).to_owned()).collect(), include_stop);
    let mut texts = Vec::new();
    for (index, bytes) in tokens.iter().enumerate() {
        let pushed = stream.push(index, bytes, index + 1 == tokens.len());
        for piece in pushed.pieces {
            assert_eq!(piece.token, texts.len(), "tokens come in order");
            texts.push(piece.text);
        }
        if pushed.stopped.is_some() {
            assert_eq!(texts.len(), index + 1, "nothing is held back at the end");
            return (texts, pushed.stopped);
        }
    }
    assert_eq!(texts.len(), tokens.len());
    (texts, None)
}

fn plain(text: &[&str]) -> Vec<String> {
    text.iter().map(|part| (*part).to_owned()).collect()
}

#[test]
fn the_token_that_completes_a_character_carries_it() {
    let [one, two] = ["é".as_bytes()[0], "é".as_bytes()[1]];
    assert_eq!(run(&[], false, &[b"a", &[one], &[two], b"b"]).0, plain(&["a", "", "é", "b"]));
    let emoji = "🦜".as_bytes();
    assert_eq!(run(&[], false, &[&emoji[..1], &emoji[1..3], &emoji[3..]]).0, plain(&["", "", "🦜"]));
}

#[test]
fn bytes_that_are_no_character_become_replacement_characters() {
    assert_eq!(run(&[], false, &[&[0xff], b"a", &[0xc3], b"b"]).0, plain(&["\u{fffd}", "a", "", "\u{fffd}b"]));
    assert_eq!(run(&[], false, &[b"a", &[0xf0, 0x9f]]).0, plain(&["a", "\u{fffd}"]));
}

#[test]
fn a_stop_string_across_tokens_is_cut_off_or_kept() {
    let tokens: &[&[u8]] = &[b"one\n", b"Us", b"er", b": hi"];
    assert_eq!(run(&["\nUser:"], false, tokens), (plain(&["one", "", "", ""]), Some(0)));
    assert_eq!(run(&["\nUser:"], true, tokens), (plain(&["one\n", "Us", "er", ":"]), Some(0)));
}

#[test]
fn a_stop_string_across_the_borders_of_characters_is_found() {
    let parrot = "🦜".as_bytes();
    let tokens: &[&[u8]] = &[b"x", &parrot[..2], &parrot[2..], b"y"];
    assert_eq!(run(&["🦜y"], false, tokens), (plain(&["x", "", "", ""]), Some(0)));
    assert_eq!(run(&["🦜z"], false, tokens), (plain(&["x", "", "🦜", "y"]), None));
}

#[test]
fn text_that_only_looks_like_a_stop_string_is_delivered_when_it_is_known() {
    let mut stream = TextStream::new(vec!["abc".to_owned()], false);
    assert_eq!(stream.push('1', b"xa", false).pieces, []);
    let freed = stream.push('2', b"d", false).pieces;
    assert_eq!(freed, [Piece { token: '1', text: "xa".to_owned() }, Piece { token: '2', text: "d".to_owned() }]);
    assert_eq!(stream.push('3', b"ab", true).pieces, [Piece { token: '3', text: "ab".to_owned() }]);
}

#[test]
fn the_stop_string_that_is_complete_first_wins() {
    assert_eq!(run(&["abc", "b"], false, &[b"abc"]), (plain(&["a"]), Some(1)));
    assert_eq!(run(&["bc", "abc"], false, &[b"xabc"]), (plain(&["x"]), Some(1)));
    assert_eq!(run(&["aa"], false, &[b"a", b"a"]), (plain(&["", ""]), Some(0)));
}

/// The definition: look at the text character by character.
fn expected(text: &str, stops: &[String], include_stop: bool) -> (String, bool) {
    for (at, character) in text.char_indices() {
        let sofar = &text[..at + character.len_utf8()];
        if let Some(stop) = stops.iter().filter(|stop| sofar.ends_with(stop.as_str())).max_by_key(|stop| stop.len()) {
            let end = if include_stop { sofar.len() } else { sofar.len() - stop.len() };
            return (sofar[..end].to_owned(), true);
        }
    }
    (text.to_owned(), false)
}

proptest! {
    #[test]
    fn however_the_bytes_are_cut_the_text_is_the_same(
        text in "[abé🦜]{0,24}",
        stops in proptest::collection::vec("[abé🦜]{1,4}", 0..3),
        include_stop: bool,
        cuts in proptest::collection::vec(1usize..5, 1..40),
    ) {
        let mut tokens: Vec<&[u8]> = Vec::new();
        let mut rest = text.as_bytes();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (token, behind) = rest.split_at((*cut).min(rest.len()));
            tokens.push(token);
            rest = behind;
        }
        let stop_refs: Vec<&str> = stops.iter().map(String::as_str).collect();
        let (texts, stopped) = run(&stop_refs, include_stop, &tokens);
        prop_assert_eq!((texts.concat(), stopped.is_some()), expected(&text, &stops, include_stop));
    }

    #[test]
    fn any_bytes_decode_like_lossy_decoding(bytes: Vec<u8>, cut in 1usize..4) {
        let tokens: Vec<&[u8]> = bytes.chunks(cut).collect();
        prop_assert_eq!(run(&[], false, &tokens).0.concat(), String::from_utf8_lossy(&bytes));
    }
}
