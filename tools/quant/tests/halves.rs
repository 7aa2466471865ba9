//! A model in two halves against the whole: the same bits, wherever it is cut, packed or not, token by token or many at a time.

mod common;

use common::{pack, planes, reference};
use lutite_kernels::isa::Isa;
use lutite_models::halves::{Back, Front, Text};
use lutite_models::{Budget, OpenOptions, Path, open};
use lutite_quant::PackOptions;
use lutite_runtime::decode::{Decoder, Logits, Phase};
use lutite_runtime::os::file::DataFile;
use lutite_runtime::sample::argmax;
use lutite_runtime::store::Bytes;
use std::sync::Arc;

/// Models of which heads are tied and not, and how they are multiplied.
fn models() -> Vec<(&'static str, Bytes, Path)> {
    let stories = reference("stories260K-f32.gguf");
    vec![
        ("plain, tied", stories.clone(), Path::Plain),
        ("plain", reference("llama.gguf"), Path::Plain),
        ("plain, stretched", reference("llama3-ropefreqs.gguf"), Path::Plain),
        ("codes", pack(&stories, &PackOptions::exact()), Path::Lut),
        ("planes", planes(&stories, 3), Path::Lut),
    ]
}

fn options(path: Path, workers: usize) -> OpenOptions {
    let isa = Isa::from_env().unwrap();
    OpenOptions { path, workers, context: Some(64), batch: 8, ..OpenOptions::new(isa) }
}

#[test]
fn the_bits_of_the_whole_wherever_it_is_cut() {
    for (name, file, path) in models() {
        let mut whole = open::open(&file, &options(path, 2)).unwrap();
        for cut in 0..=whole.config().layers {
            let mut front = Front::open(&file, &options(path, 1), cut).unwrap();
            let mut back = Back::open(&file, &options(path, 2), cut).unwrap();
            let dim = front.config().dim;
            whole.rewind(0);
            // A prompt, of which a part is forgotten again, then an answer.
            let steps: [(&[u32], usize); 3] = [(&[1, 5, 9, 70, 100, 3, 4], 5), (&[8, 60], 6), (&[11], 7)];
            let mut next = 0;
            for (tokens, keep) in steps {
                let expected = whole.step(tokens, Phase::Prompt, Logits::All).unwrap();
                let states = front.step(tokens, Phase::Prompt).unwrap();
                assert_eq!(states.len(), tokens.len() * dim);
                let found = back.step(states, Phase::Prompt, Logits::All).unwrap();
                assert_eq!(found, expected, "{name}, layer {cut}");
                next = argmax(&expected[expected.len() - expected.len() / tokens.len()..]).unwrap();
                whole.rewind(keep);
                front.rewind(keep);
                back.rewind(keep);
            }
            for _ in 0..20 {
                let expected = whole.step(&[next], Phase::Answer, Logits::Last).unwrap();
                let states = front.step(&[next], Phase::Answer).unwrap();
                let found = back.step(states, Phase::Answer, Logits::Last).unwrap();
                assert_eq!(found, expected, "{name}, layer {cut}");
                next = argmax(expected).unwrap();
            }
            assert_eq!((front.position(), back.position()), (27, 27));
        }
    }
}

fn text(slot: usize, start: usize, tokens: usize) -> Text {
    Text { slot, start, tokens, wanted: true }
}

/// What a worker does: several texts in one step, in the bits of each alone, and each as long and as old as it is.
#[test]
fn texts_together_are_what_each_is_alone() {
    for (name, file, path) in models() {
        let mut front = Front::open(&file, &options(path, 1), 1).unwrap();
        let mut alone = Back::open(&file, &options(path, 1), 1).unwrap();
        let mut together = Back::open(&file, &options(path, 2), 1).unwrap();
        let slots = [0, together.add_text().unwrap(), together.add_text().unwrap()];
        assert_eq!(slots, [0, 1, 2]);
        // Of each text, how many tokens each step has; none in some.
        let texts: [(&[u32], &[usize]); 3] = [
            (&[1, 5, 9, 70, 100, 3, 4, 8, 60], &[4, 1, 0, 1, 3]),
            (&[1, 80, 81, 82, 83, 84], &[1, 1, 1, 1, 2]),
            (&[1, 30, 31, 32, 33, 34, 35, 36, 37, 38], &[0, 3, 5, 1, 1]),
        ];
        for phase in [Phase::Prompt, Phase::Answer] {
            let mut fed = [0; 3];
            for step in 0..5 {
                let (mut runs, mut states, mut expected) = (vec![], vec![], vec![]);
                for (i, (tokens, counts)) in texts.iter().enumerate().filter(|(_, (_, c))| c[step] > 0) {
                    // Alone, from the beginning.
                    front.rewind(0);
                    alone.rewind(0);
                    let end = fed[i] + counts[step];
                    let mut last = vec![];
                    for part in tokens[..end].chunks(8) {
                        last = front.step(part, phase).unwrap().to_vec();
                        let logits = alone.step(&last, phase, Logits::Last).unwrap().to_vec();
                        if part.as_ptr_range().end == tokens[..end].as_ptr_range().end {
                            expected.extend(logits);
                        }
                    }
                    let dim = front.config().dim;
                    front.rewind(fed[i]);
                    last.clear();
                    last.extend_from_slice(front.step(&tokens[fed[i]..end], phase).unwrap());
                    assert_eq!(last.len(), counts[step] * dim);
                    runs.push(text(slots[i], fed[i], counts[step]));
                    states.extend(last);
                    fed[i] = end;
                }
                let found = together.step_texts(&runs, &states, phase).unwrap();
                assert_eq!(found, expected, "{name}, step {step}");
            }
        }
        // A slot that is free again is given to the next.
        together.remove_text(1);
        let dim = front.config().dim;
        let why = |texts: &[(usize, usize, usize)], n: usize, together: &mut Back| {
            let texts: Vec<Text> = texts.iter().map(|(slot, start, n)| text(*slot, *start, *n)).collect();
            together.step_texts(&texts, &vec![0.0; n * dim], Phase::Answer).unwrap_err().to_string()
        };
        assert!(why(&[(1, 0, 1)], 1, &mut together).contains("of text 1, which has none"));
        assert!(why(&[(0, 0, 1), (0, 1, 1)], 2, &mut together).contains("or comes twice"));
        assert!(why(&[(2, 63, 2)], 2, &mut together).contains("positions 63 to 65"));
        assert!(why(&[(2, 0, 2)], 3, &mut together).contains("3 states for other"));
        assert!(why(&[(2, 0, 0)], 1, &mut together).contains("none such"));
        assert!(why(&[(2, 0, usize::MAX), (0, 0, 2)], 1, &mut together).contains("none such"));
        assert!(why(&[], 1, &mut together).contains("1 states for other"));
        assert!(why(&[(0, 0, 9)], 9, &mut together).contains("9 tokens in one step"));
        assert_eq!(together.add_text().unwrap(), 1);
    }
}

#[test]
fn what_is_no_half_is_refused() {
    let (_, file, path) = models().remove(3);
    let o = options(path, 1);
    let layers = open::check(&file).unwrap().layers;
    for result in
        [Front::open(&file, &o, layers + 1).map(|_| ()), Back::open(&file, &o, layers + 1).map(|_| ())]
    {
        assert!(result.unwrap_err().to_string().contains(&format!("of a model of {layers}")));
    }
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("m.gguf");
    std::fs::write(&place, &file[..]).unwrap();
    let data = Arc::new(DataFile::open(&place).unwrap());
    let budget = Some(Budget { bytes: 1 << 30, bound: "a test".into(), file: data, at_once: false });
    let why = Front::open(&file, &OpenOptions { budget, ..o.clone() }, 1).unwrap_err().to_string();
    assert!(why.contains("a budget is for whole models"), "{why}");
    let mut back = Back::open(&file, &o, 1).unwrap();
    assert!(back.step(&[0.0; 3], Phase::Answer, Logits::Last).is_err());
    assert!(back.step(&[], Phase::Answer, Logits::Last).is_err());
    let mut front = Front::open(&file, &o, 1).unwrap();
    assert!(front.step(&[1 << 30], Phase::Answer).is_err());
    assert_eq!((front.position(), back.position()), (0, 0));
    // A tensor of the other half may be damaged; one of its own is found.
    let mut damaged = file.to_vec();
    let at = {
        let gguf = lutite_runtime::store::Gguf::parse(&file).unwrap();
        gguf.tensor("blk.0.ffn_norm.weight").unwrap().offset as usize
    };
    damaged[at] ^= 4;
    let damaged = Bytes::new(damaged);
    Back::open(&damaged, &o, 1).unwrap();
    let why = Front::open(&damaged, &o, 1).unwrap_err().to_string();
    assert!(why.contains("blk.0.ffn_norm.weight") && why.contains("checksum"), "{why}");
}
