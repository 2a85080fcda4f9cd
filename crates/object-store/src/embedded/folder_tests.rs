use super::*;

fn put(folder: &Folder, bucket: &Bucket, key: &str, content: &[u8], condition: Condition) -> Verdict {
    let mut temporary = folder.temporary().unwrap();
    temporary.file.write_all(content).unwrap();
    let attributes = Attributes {
        bytes: content.len() as u64,
        etag: format!("etag of {}", String::from_utf8_lossy(content)),
        modified_ms: 1,
        content_type: None,
        metadata: BTreeMap::new(),
    };
    object_file::finish(&mut temporary.file, &attributes).unwrap();
    folder.commit(bucket, key, &temporary, &attributes, &condition).unwrap()
}

fn folder_with(keys: &[&str]) -> (tempfile::TempDir, Folder, Arc<Bucket>) {
    let directory = tempfile::tempdir().unwrap();
    let folder = Folder::open(directory.path()).unwrap();
    assert!(folder.create_bucket("bucket").unwrap());
    let bucket = folder.bucket("bucket").unwrap();
    for key in keys {
        assert_eq!(put(&folder, &bucket, key, key.as_bytes(), Condition::Absent), Verdict::Holds, "{key}");
    }
    (directory, folder, bucket)
}

const ODD_KEYS: &[&str] = &[
    "a", "a/b", "a/b/c", "a//b", "/", "a/", ".", "..", "../up", ".hidden", "a@", "a@/b", "%00", "a%2Fb", "ä ö", "a/b@",
];

#[test]
fn odd_keys_are_distinct_objects_and_survive_a_restart() {
    let (directory, folder, bucket) = folder_with(ODD_KEYS);
    drop((folder, bucket));
    let folder = Folder::open(directory.path()).unwrap();
    let bucket = folder.bucket("bucket").unwrap();
    for key in ODD_KEYS {
        let (mut file, attributes) = bucket.read(key).unwrap().expect(key);
        let mut content = Vec::new();
        Read::by_ref(&mut file).take(attributes.bytes).read_to_end(&mut content).unwrap();
        assert_eq!(content, key.as_bytes());
    }
    assert_eq!(bucket.list("", None, None, 1000).objects.len(), ODD_KEYS.len());
}

#[test]
fn keys_that_have_no_file_name_are_refused() {
    assert_eq!(check_key(""), Err(KeyError::Empty));
    assert_eq!(check_key("a\nb"), Err(KeyError::ControlCharacter));
    assert_eq!(check_key(&"a".repeat(255)), Err(KeyError::TooLong));
    assert_eq!(check_key(&"ä".repeat(60)), Err(KeyError::TooLong));
    assert_eq!(check_key(&"a/".repeat(513)), Err(KeyError::TooLong));
    assert_eq!(check_key(&"a".repeat(254)), Ok(()));
    ODD_KEYS.iter().for_each(|key| assert_eq!(check_key(key), Ok(()), "{key}"));
}

#[test]
fn conditions_are_checked_against_the_object() {
    let (_directory, folder, bucket) = folder_with(&["a"]);
    let etag = Condition::Matches("etag of a".to_owned());
    assert_eq!(put(&folder, &bucket, "a", b"x", Condition::Absent), Verdict::Fails);
    assert_eq!(put(&folder, &bucket, "b", b"x", Condition::Present), Verdict::Missing);
    assert_eq!(put(&folder, &bucket, "b", b"x", etag.clone()), Verdict::Missing);
    assert_eq!(put(&folder, &bucket, "a", b"x", etag.clone()), Verdict::Holds);
    assert_eq!(put(&folder, &bucket, "a", b"y", etag), Verdict::Fails);
    folder.delete(&bucket, "a").unwrap();
    folder.delete(&bucket, "a").unwrap();
    assert!(bucket.read("a").unwrap().is_none());
    assert_eq!(put(&folder, &bucket, "a", b"z", Condition::Absent), Verdict::Holds);
    // Nothing is left of writes that lost.
    assert_eq!(fs::read_dir(folder.root.join("tmp")).unwrap().count(), 0);
}

#[test]
fn pages_meet_without_gap_or_overlap() {
    let keys: Vec<String> = (0..25).map(|i| format!("k/{}/{i:02}", i % 3)).chain(["k".into(), "l/x".into()]).collect();
    let (_directory, _folder, bucket) = folder_with(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    for max in [1, 2, 7, 1000] {
        for (prefix, delimiter) in [("", None), ("k/", None), ("k/1/", None), ("", Some("/")), ("k/", Some("/"))] {
            let mut seen = Vec::new();
            let mut after: Option<String> = None;
            loop {
                let page = bucket.list(prefix, delimiter, after.as_deref(), max);
                assert!(page.objects.len() + page.common_prefixes.len() <= max);
                let mut names: Vec<String> = page.objects.into_iter().map(|(key, _)| key).collect();
                names.extend(page.common_prefixes);
                names.sort();
                seen.extend(names);
                after = page.next_after;
                if after.is_none() {
                    break;
                }
            }
            let mut expected: Vec<String> = keys.iter().filter(|key| key.starts_with(prefix)).cloned().collect();
            if delimiter.is_some() {
                for name in &mut expected {
                    if let Some(end) = name[prefix.len()..].find('/') {
                        name.truncate(prefix.len() + end + 1);
                    }
                }
            }
            expected.sort();
            expected.dedup();
            assert_eq!(seen, expected, "prefix {prefix:?} delimiter {delimiter:?} max {max}");
        }
    }
}

#[test]
fn a_folder_has_one_owner() {
    let (directory, folder, bucket) = folder_with(&[]);
    let Err(error) = Folder::open(directory.path()) else { panic!("two owners") };
    let message = error.to_string();
    assert!(message.contains(&std::process::id().to_string()) && message.contains("in use"), "{message}");
    drop((folder, bucket));
    Folder::open(directory.path()).unwrap();
}

#[test]
fn writes_under_way_are_forgotten_at_start_and_foreign_files_are_named() {
    let (directory, folder, bucket) = folder_with(&["a"]);
    std::mem::forget(folder.temporary().unwrap());
    drop((folder, bucket));
    drop(Folder::open(directory.path()).unwrap());
    assert_eq!(fs::read_dir(directory.path().join("tmp")).unwrap().count(), 0);

    let foreign = directory.path().join("buckets/bucket/x@");
    fs::write(&foreign, b"not an object").unwrap();
    let Err(error) = Folder::open(directory.path()) else { panic!("accepted") };
    assert!(error.to_string().contains(foreign.to_str().unwrap()), "{error}");
}
