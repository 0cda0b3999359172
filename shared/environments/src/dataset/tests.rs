use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::*;

const COLUMNS: [&str; 2] = ["question", "answer"];

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path
}

fn row(question: &str) -> String {
    format!("{{\"question\": \"{question}\", \"extra\": [1], \"answer\": \"#### 1\"}}\n")
}

fn questions(path: &Path, split: SourceSplit) -> Result<Vec<String>, DatasetError> {
    Ok(Dataset::open(path)?.rows(split, COLUMNS)?.into_iter().map(|[question, _]| question).collect())
}

fn write_parquet(path: &Path, schema: &str, columns: &[Vec<Option<&str>>]) {
    write_packed(path, schema, columns, Compression::SNAPPY, WriterVersion::PARQUET_1_0);
}

fn write_packed(path: &Path, schema: &str, columns: &[Vec<Option<&str>>], packed: Compression, version: WriterVersion) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = File::create(path).unwrap();
    let properties = WriterProperties::builder().set_compression(packed).set_writer_version(version).build();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for column in columns {
        let mut chunk = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = column.iter().flatten().map(|text| ByteArray::from(*text)).collect();
        let levels: Vec<i16> = column.iter().map(|text| i16::from(text.is_some())).collect();
        chunk.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        chunk.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn a_folder_is_read_split_by_split_in_name_order() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "main/train-00001-of-00002.jsonl", &row("b"));
    write(folder.path(), "main/train-00000-of-00002.jsonl", &(row("a") + "\n" + &row("é")));
    write(folder.path(), "test.jsonl", &row("t"));
    write(folder.path(), "README.md", "train");
    assert_eq!(questions(folder.path(), SourceSplit::Train).unwrap(), ["a", "é", "b"]);
    assert_eq!(questions(folder.path(), SourceSplit::Test).unwrap(), ["t"]);
    let message = questions(folder.path(), SourceSplit::Validation).unwrap_err().to_string();
    assert!(message.contains("no split `validation` (found: train, test)"), "{message}");
}

#[test]
fn a_file_serves_as_the_split_it_names_or_as_any() {
    let folder = tempfile::tempdir().unwrap();
    let named = write(folder.path(), "my-test.jsonl", &row("t"));
    let unnamed = write(folder.path(), "problems.jsonl", &row("p"));
    assert_eq!(questions(&named, SourceSplit::Test).unwrap(), ["t"]);
    assert!(matches!(questions(&named, SourceSplit::Train), Err(DatasetError::NoSplit { .. })));
    assert_eq!(questions(&unnamed, SourceSplit::Train).unwrap(), ["p"]);
    assert_eq!(questions(&unnamed, SourceSplit::Test).unwrap(), ["p"]);
    let text = write(folder.path(), "problems.txt", "x");
    assert!(matches!(Dataset::open(&text), Err(DatasetError::UnknownForm { .. })));
    assert!(matches!(Dataset::open(&folder.path().join("absent")), Err(DatasetError::Unreadable { .. })));
}

#[test]
fn gzip_is_read_and_bounded_like_plain_text() {
    let folder = tempfile::tempdir().unwrap();
    let pack = |name: &str, text: &str| {
        let path = folder.path().join(name);
        let mut gzip = flate2::write::GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::fast());
        gzip.write_all(text.as_bytes()).unwrap();
        gzip.finish().unwrap();
        path
    };
    assert_eq!(questions(&pack("train.jsonl.gz", &row("z")), SourceSplit::Train).unwrap(), ["z"]);
    let bomb = pack("test.jsonl.gz", &" ".repeat(MAX_ROW_BYTES + 1));
    assert!(questions(&bomb, SourceSplit::Test).unwrap_err().to_string().contains("longer than"));
}

#[test]
fn bad_rows_are_named_by_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let long = format!("{{\"question\": \"{}\"}}", "x".repeat(MAX_ROW_BYTES));
    for (bad, why) in [
        ("{\"question\": \"a\"", "not usable JSON"),
        ("[1]", "an object with the text columns"),
        ("{\"question\": \"a\"}", "`answer` is missing"),
        ("{\"question\": 1, \"answer\": \"b\"}", "`question` is not a text"),
        ("{\"question\": \"a\", \"answer\": \"b\", \"answer\": \"c\"}", "twice"),
        ("{\"question\": \"a\\u0000\", \"answer\": \"b\"}", "NUL"),
        ("{\"question\": \"a\", \"answer\": \"b\"} x", "trailing"),
        (long.as_str(), "longer than"),
    ] {
        let path = write(folder.path(), "train.jsonl", &(row("fine") + bad));
        let message = questions(&path, SourceSplit::Train).unwrap_err().to_string();
        assert!(message.contains("Row 2 of") && message.contains(why), "{message}");
    }
    let empty = write(folder.path(), "test.jsonl", "\n \n");
    assert!(matches!(questions(&empty, SourceSplit::Test), Err(DatasetError::Empty { .. })));
}

#[test]
fn a_byte_order_mark_is_passed_over_and_a_pointer_of_git_lfs_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "train.jsonl", &format!("\u{feff}{}", row("a")));
    assert_eq!(questions(&path, SourceSplit::Train).unwrap(), ["a"]);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    for name in ["train.parquet", "train.jsonl"] {
        let path = write(folder.path(), name, pointer);
        let error = questions(&path, SourceSplit::Train).unwrap_err().to_string();
        assert!(error.contains("Git LFS pointer") && error.contains(name), "{error}");
    }
}

#[test]
fn parquet_columns_are_read_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train-00000-of-00001.parquet");
    let schema = "message schema { optional binary answer (UTF8); optional binary question (STRING); }";
    write_parquet(&path, schema, &[vec![Some("#### 1"), Some("#### 2")], vec![Some("a"), Some("é")]]);
    let rows = Dataset::open(folder.path()).unwrap().rows(SourceSplit::Train, COLUMNS).unwrap();
    assert_eq!(rows, [["a", "#### 1"], ["é", "#### 2"]]);

    write_parquet(&path, schema, &[vec![Some("#### 1"), None], vec![Some("a"), Some("b")]]);
    let message = questions(folder.path(), SourceSplit::Train).unwrap_err().to_string();
    assert!(message.contains("Row 2 of") && message.contains("`answer` is null"), "{message}");

    write(folder.path(), "train.jsonl", &row("a"));
    assert!(matches!(Dataset::open(folder.path()), Err(DatasetError::MixedForms { .. })));
}

#[test]
fn parquet_files_of_another_schema_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    let values = || vec![Some("v")];
    for (schema, columns, why) in [
        ("message m { optional binary question (UTF8); }", 1, "no column `answer` (found: question)"),
        ("message m { optional binary question (UTF8); optional binary answer; }", 2, "`answer` is not text"),
        (
            "message m { optional binary question (UTF8); optional binary answer (UTF8); optional binary answer (UTF8); }",
            3,
            "two columns `answer`",
        ),
    ] {
        write_parquet(&path, schema, &vec![values(); columns]);
        let message = questions(&path, SourceSplit::Train).unwrap_err().to_string();
        assert!(message.contains(why), "{message}");
    }
    std::fs::write(&path, "PAR1 no PAR1").unwrap();
    assert!(questions(&path, SourceSplit::Train).unwrap_err().to_string().contains("no Parquet file"));
}

#[test]
fn a_split_is_one_file_or_one_whole_set_of_shards() {
    let other = |name: &str| {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "train.jsonl", &row("a"));
        write(folder.path(), name, &row("b"));
        questions(folder.path(), SourceSplit::Train)
    };
    for name in [
        "train_socratic.jsonl",
        "train (1).jsonl",
        "train - Copy.jsonl",
        "Copy of train.jsonl",
        "train.old.jsonl",
        "train.jsonl.gz",
        "train-00000-of-00001.jsonl",
        "main/train.jsonl",
        "data/train.jsonl",
    ] {
        let message = other(name).unwrap_err().to_string();
        let file = name.rsplit('/').next().unwrap();
        assert!(message.contains(file) && message.contains("train.jsonl") && message.contains("`train`"), "{name}: {message}");
    }
    for name in [
        "._train.jsonl",
        ".train.jsonl.swp",
        ".#train.jsonl",
        "#train.jsonl#",
        "train.jsonl~",
        "~train.jsonl",
        "train.jsonl.bak",
        "training-notes.txt",
    ] {
        assert_eq!(other(name).unwrap(), ["a"], "{name}");
    }
}

#[test]
fn a_set_of_shards_is_whole_and_the_only_one() {
    let rows = |names: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            write(folder.path(), name, &row(name));
        }
        questions(folder.path(), SourceSplit::Train).map_err(|error| error.to_string())
    };
    let (first, second) = ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl");
    assert_eq!(rows(&[second, first]).unwrap(), [first, second]);
    // The numbers decide, not the names: older files carry a hash behind them.
    let hashed = ["train-00000-of-00002-ffff.jsonl", "train-00001-of-00002-0000.jsonl"];
    assert_eq!(rows(&hashed).unwrap(), hashed);
    for (names, why) in [
        (&[first][..], "1 of 2 shards"),
        (&[second], "1 of 2 shards"),
        (&[first, second, "train-00000-of-00001.jsonl"], "different sizes"),
        (&[first, second, "train.jsonl"], "no shard"),
        (&[first, second, "train-00001-of-00002-abcd.jsonl"], "twice"),
        (&[first, "train-00002-of-00002.jsonl"], "number 2"),
        (&["old-train-00000-of-00002.jsonl", second], "different names"),
    ] {
        let message = rows(names).unwrap_err();
        assert!(message.contains(why) && message.contains(names[0]), "{names:?}: {message}");
    }
    // A shard alone is not the whole either.
    let folder = tempfile::tempdir().unwrap();
    let shard = write(folder.path(), first, &row("a"));
    assert!(questions(&shard, SourceSplit::Train).unwrap_err().to_string().contains("1 of 2 shards"));
}

const TEXT_SCHEMA: &str = "message schema { optional binary question (STRING); optional binary answer (STRING); }";

#[test]
fn parquet_is_read_in_every_compression() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.parquet");
    let long = "ä".repeat(3000);
    let columns = [vec![Some("a"), Some(long.as_str()), Some("a")], vec![Some("#### 1"); 3]];
    let codecs = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::BROTLI(Default::default()),
        Compression::ZSTD(Default::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
    ];
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        for codec in codecs {
            write_packed(&path, TEXT_SCHEMA, &columns, codec, version);
            assert_eq!(questions(&path, SourceSplit::Train).unwrap(), ["a", &long, "a"], "{codec:?} {version:?}");
        }
    }
}

/// A page that unpacks to more than a split may have is refused before the reader unpacks it, whatever its header promises.
#[test]
fn a_page_that_unpacks_to_too_much_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.parquet");
    let columns = [vec![Some("a")], vec![Some("#### 1")]];
    for codec in [Compression::BROTLI(Default::default()), Compression::GZIP(Default::default())] {
        write_packed(&path, TEXT_SCHEMA, &columns, codec, WriterVersion::PARQUET_1_0);
        let file = Arc::new(File::open(&path).unwrap());
        let reader = parquet::file::reader::SerializedFileReader::new(file.try_clone().unwrap()).unwrap();
        let group = parquet::file::reader::FileReader::metadata(&reader).row_group(0);
        let mut left = 3;
        let error = parquet_rows::refuse_bomb(&file, group.column(0), 1, &mut left).unwrap_err();
        assert!(error.contains("unpacks to more than"), "{codec:?}: {error}");
        let mut left = 1000;
        parquet_rows::refuse_bomb(&file, group.column(0), 1, &mut left).unwrap();
        assert!((900..1000).contains(&left), "{codec:?}: {left}");
    }
}

#[test]
fn a_cache_folder_of_the_hub_is_read_at_the_revision_that_counts() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("datasets--openai--gsm8k");
    let (old, new) = ("1a".repeat(20), "2b".repeat(20));
    let place = |revision: &str, question: &str| {
        // Files of a snapshot are links into blobs/.
        let blob = write(&cache, &format!("blobs/{question}"), &row(question));
        let file = cache.join(format!("snapshots/{revision}/main/train-00000-of-00001.jsonl"));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(blob, file).unwrap();
    };
    place(&old, "old");
    assert_eq!(questions(&cache, SourceSplit::Train).unwrap(), ["old"], "the only one");
    place(&new, "new");
    let message = questions(&cache, SourceSplit::Train).unwrap_err().to_string();
    assert!(message.contains(&old) && message.contains(&new) && message.contains("no refs/main"), "{message}");
    write(&cache, "refs/main", &format!("{new}\n"));
    assert_eq!(questions(&cache, SourceSplit::Train).unwrap(), ["new"]);
    assert_eq!(Dataset::open(&cache).unwrap().path(), cache.join("snapshots").join(&new));
    assert_eq!(questions(&cache.join("snapshots").join(&old), SourceSplit::Train).unwrap(), ["old"], "named itself");
    for (revision, why) in [("3c3c", "not in snapshots/"), ("../other", "no revision"), ("", "no revision")] {
        write(&cache, "refs/main", revision);
        let message = questions(&cache, SourceSplit::Train).unwrap_err().to_string();
        assert!(message.contains(why) && message.contains("datasets--openai--gsm8k"), "{message}");
    }
    std::fs::remove_dir_all(cache.join("snapshots")).unwrap();
    std::fs::remove_file(cache.join("refs/main")).unwrap();
    std::fs::create_dir(cache.join("snapshots")).unwrap();
    assert!(questions(&cache, SourceSplit::Train).unwrap_err().to_string().contains("no revision in snapshots/"));
}

#[test]
fn in_the_hubs_own_conversion_the_folder_says_the_split() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str, question: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_parquet(&path, TEXT_SCHEMA, &[vec![Some(question)], vec![Some("#### 1")]]);
        path
    };
    let first = place("main/train/0000.parquet", "a");
    place("main/test/0000.parquet", "t");
    place("socratic/train/0000.parquet", "no");
    let train = |path: &Path| questions(path, SourceSplit::Train);
    for path in [folder.path(), &folder.path().join("main"), &folder.path().join("main/train"), &first] {
        assert_eq!(train(path).unwrap(), ["a"], "{path:?}");
    }
    assert_eq!(questions(folder.path(), SourceSplit::Test).unwrap(), ["t"]);
    assert!(questions(&first, SourceSplit::Test).unwrap_err().to_string().contains("no split `test`"));
    let second = place("main/train/0001.parquet", "b");
    assert_eq!(train(folder.path()).unwrap(), ["a", "b"]);
    // One of several is not the whole.
    let message = train(&first).unwrap_err().to_string();
    assert!(message.contains("0000.parquet alone was named") && message.contains("0001.parquet"), "{message}");
    std::fs::rename(&second, folder.path().join("main/train/0002.parquet")).unwrap();
    let message = train(folder.path()).unwrap_err().to_string();
    assert!(message.contains("the file 1 is not there"), "{message}");
    std::fs::remove_file(folder.path().join("main/train/0002.parquet")).unwrap();
    for (name, why) in [
        ("data/train/0000.parquet", "the file 0 is there twice"),
        ("main/train-00000-of-00001.parquet", "0000.parquet is no shard"),
        ("main/train/extra.parquet", "no shard of it"),
        ("main/train/extra.jsonl", "as Parquet and as JSON lines"),
    ] {
        let beside = place(name, "b");
        let message = train(folder.path()).unwrap_err().to_string();
        assert!(message.contains(why), "{name}: {message}");
        std::fs::remove_file(beside).unwrap();
    }
    // Part of a conversion names its folder so.
    std::fs::rename(folder.path().join("main/train"), folder.path().join("main/partial-train")).unwrap();
    assert!(train(folder.path()).unwrap_err().to_string().contains("no split `train`"));
}
