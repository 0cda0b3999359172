use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
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
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = File::create(path).unwrap();
    let properties = WriterProperties::builder().set_compression(parquet::basic::Compression::SNAPPY).build();
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
