"""Reading sequence files: what is understood, and how each malformed file is answered."""

import bz2
import gzip
import lzma
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plft.errors import PlftError
from plft.formats import READERS
from plft.records import Columns, Record, load_data, read_records, split_name

CSV = "id,sequence,label,split\na,mktv,1,train\nb,MKTA,0,val\n"
FASTA = ">a LABEL=1 SET=train\nMKTV\n>b LABEL=0 SET=val\nMKTA\n"
JSONL = '{"id":"a","sequence":"MKTV","label":1,"split":"train"}\n{"id":"b","sequence":"MKTA","label":0,"split":"val"}\n'


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def read(path, columns=None, labelled=None) -> list[Record]:
    return list(read_records(path, columns, labelled=labelled))


def parquet(path: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


# --- what is understood


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.csv", CSV),
        ("d.tsv", CSV.replace(",", "\t")),
        ("d.jsonl", JSONL),
        ("d.json", JSONL),
        ("d.fasta", FASTA),
        ("d.faa", FASTA),
        ("D.FA", FASTA),
    ],
)
def test_every_text_format_gives_the_same_records_packed_or_not(write, name, text, suffix):
    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    records = read(write(name + suffix, pack(text.encode())))
    assert [(each.id, each.sequence, each.label, each.split) for each in records] == [
        ("a", "MKTV", "1", "train"),
        ("b", "MKTA", "0", "valid"),
    ]
    assert records[1].place == f"{name}{suffix}, row 2 (id b)"


def test_every_ending_of_the_table_is_read(write):
    texts = {"CSV": CSV, "TSV": CSV.replace(",", "\t"), "JSON lines": JSONL, "FASTA": FASTA}
    for suffix, reader in READERS.items():
        if reader.title in texts:
            assert len(read(write("d" + suffix, texts[reader.title]))) == 2


def test_parquet_gives_the_same_records(tmp_path):
    path = parquet(tmp_path / "d.parquet", id=["a", None], sequence=["mktv", "MKTA"], label=[1, None])
    records = read(path)
    assert [(each.id, each.sequence, each.label) for each in records] == [("a", "MKTV", "1"), ("2", "MKTA", None)]


def test_parquet_lists_stay_lists_and_dictionaries_become_text(tmp_path):
    split = pa.array(["Train", "DEV"]).dictionary_encode()
    path = parquet(tmp_path / "d.parquet", sequence=["MKT", "MK"], label=[[0.5, None, 1.0], [1.0, 2.0]], split=split)
    records = read(path)
    assert [each.label for each in records] == [[0.5, None, 1.0], [1.0, 2.0]]
    assert [each.split for each in records] == ["train", "valid"]


def test_a_byte_order_mark_windows_line_ends_quotes_and_blank_lines_are_fine(write):
    path = write("d.csv", b'\xef\xbb\xbfsequence,label\r\n"MK\r\nTV","a ""b"", c"\r\n\r\nMKTA,x\r\n\r\n\r\n')
    assert [(each.sequence, each.label, each.row) for each in read(path)] == [
        ("MKTV", 'a "b", c', 1),
        ("MKTA", "x", 2),
    ]
    path = write("d.fasta", b"\xef\xbb\xbf>a\r\nMK\r\n\r\nTV\r\n\r\n")
    assert [each.sequence for each in read(path)] == ["MKTV"]


def test_a_packed_file_without_the_ending_is_read_too(write):
    assert len(read(write("d.csv", gzip.compress(CSV.encode())))) == 2


def test_sequences_with_blanks_and_in_lower_case_are_tidied(write):
    assert read(write("d.csv", "sequence\nm k t v\n"))[0].sequence == "MKTV"


def test_a_field_longer_than_the_limit_of_the_csv_module_is_read(write):
    assert len(read(write("d.csv", "sequence\n" + "A" * 200_000 + "\n"))[0].sequence) == 200_000


def test_all_digit_labels_stay_text(write):
    assert read(write("d.csv", "sequence,label\nMKTAYIA,0011223\n"))[0].label == "0011223"
    assert read(write("d.jsonl", '{"sequence":"MKT","label":"001"}'))[0].label == "001"


def test_column_names_are_found_in_any_case_and_under_other_names(write):
    path = write("d.csv", "Name,SEQUENCE,Tm,Fold\nx,MKT,50,dev\n")
    record = read(path, Columns(label="tm", id="name", split="fold"))[0]
    assert (record.id, record.label, record.split) == ("x", "50", "valid")


def test_several_label_columns_are_a_tuple(write):
    path = write("d.csv", "sequence,tm,kd\nMKT,50,\n")
    assert read(path, Columns(label=("tm", "kd")))[0].label == ("50", "")


def test_extra_columns_are_kept_only_when_asked_for(write):
    path = write("d.csv", "sequence,family,ph\nMKT,PF1,7\n")
    assert read(path)[0].extra == {}
    assert read(path, Columns(extra=("Family",)))[0].extra == {"Family": "PF1"}


def test_labels_can_be_left_out_or_required(write):
    path = write("d.csv", CSV)
    assert read(path, labelled=False)[0].label is None
    unlabelled = write("u.csv", "sequence\nMKT\n")
    assert read(unlabelled)[0].label is None
    with pytest.raises(PlftError, match=r"u\.csv: no column 'label'\. Columns: sequence\."):
        read(unlabelled, labelled=True)
    with pytest.raises(PlftError, match="no column 'label'"):
        read(write("u.fasta", ">a\nMKT\n"), labelled=True)
    assert read(unlabelled, Columns(label=("label",)))[0].label is None
    with pytest.raises(PlftError, match="no column 'tm'"):
        read(unlabelled, Columns(label="tm"))
    assert read(unlabelled, Columns(label="tm", split="fold"), labelled=False)[0].label is None


def test_json_lines_may_leave_out_keys_and_hold_lists(write):
    path = write("d.jsonl", '{"sequence":"MKT","label":[1,null,0.5],"mask":[1,0,true]}\n\n{"sequence":"MK"}\n')
    first, second = read(path, labelled=True)
    assert (first.label, first.mask, second.label, second.row) == ([1, None, 0.5], "101", None, 2)


@pytest.mark.parametrize("mask", ["101", "1 0 1", "1,0,1"])
def test_masks_are_read_however_they_are_separated(write, mask):
    assert read(write("d.csv", f'sequence,mask\nMKT,"{mask}"\n'))[0].mask == "101"


def test_weights_are_numbers_and_may_be_missing(write):
    assert [each.weight for each in read(write("d.csv", "sequence,weight\nMKT,2.5\nMKV,\n"))] == [2.5, None]


def test_fasta_headers_carry_key_value_words_in_any_case(write):
    path = write(
        "d.fasta", ">sp|P1|X_HUMAN%1%2 Protein of x Target=0.1,0.2 set=TRAIN Validation=True mask=10 OS=Homo\nMK\n"
    )
    record = read(path)[0]
    assert (record.id, record.label, record.split, record.mask) == ("sp|P1|X_HUMAN%1%2", "0.1,0.2", "valid", "10")
    assert record.extra == {"OS": "Homo"}


def test_validation_true_counts_only_inside_the_train_set(write):
    path = write("d.fasta", ">a SET=test VALIDATION=True\nMK\n>b SET=train VALIDATION=False\nMK\n>c\nMK\n>\nMK\n")
    assert [(each.id, each.split) for each in read(path)] == [
        ("a", "test"),
        ("b", "train"),
        ("c", None),
        ("4", None),
    ]


def test_fasta_is_read_whatever_the_sequence_column_is_called(write):
    assert read(write("d.fasta", FASTA), Columns(sequence="protein", id="accession"))[0].sequence == "MKTV"


def test_a_stop_at_the_end_is_removed_unless_residue_labels_fit_with_it(write):
    path = write("d.csv", "sequence,label\nMKT*,HEC\nMKT*,HECC\nMKT*,yes|no\n")
    assert [each.sequence for each in read(path)] == ["MKT", "MKT*", "MKT"]
    assert [each.sequence for each in read(path, labelled=False)] == ["MKT"] * 3


def test_reading_is_a_stream(write):
    path = write("d.csv", "sequence\n" + "MKT\n" * 50_000 + "MKT,too,many\n")
    assert next(iter(read_records(path))).sequence == "MKT"


@pytest.mark.parametrize(
    ("text", "name"),
    [("Val", "valid"), ("dev", "valid"), ("VALIDATION", "valid"), (" Training", "train"), ("test_hard", "test_hard")],
)
def test_split_names_are_understood(text, name):
    assert split_name(text) == name


# --- whole data sets


def test_a_folder_of_three_files_is_read_train_first(write, tmp_path):
    for name in ("test.csv.gz", "dev.csv", "train.csv", "test_hard.csv", "notes.csv", "README.md"):
        text = f"sequence,label\n{'MKT' * 5},{name}\n".encode()
        write(f"set/{name}", gzip.compress(text) if name.endswith("gz") else text)
    records = load_data(tmp_path / "set")
    assert [(each.split, each.label) for each in records] == [
        ("train", "train.csv"),
        ("valid", "dev.csv"),
        ("test", "test.csv.gz"),
        ("test_hard", "test_hard.csv"),
    ]


def test_a_file_that_is_named_replaces_that_of_the_folder(write, tmp_path):
    for name, letters in {"train": "MKTA", "valid": "MKTC", "test": "MKTD", "test_hard": "MKTE"}.items():
        write(f"folder/{name}.csv", f"sequence,label\n{letters},1\n")
    outside = write("outside.csv", "sequence,label\nMKTF,1\n")
    found = {each.split: each.sequence for each in load_data(tmp_path / "folder", test=outside)}
    assert found == {"train": "MKTA", "valid": "MKTC", "test_hard": "MKTE", "test": "MKTF"}
    with pytest.raises(PlftError, match="No such file"):
        load_data(tmp_path / "folder", valid=tmp_path / "nope.csv")


def test_a_column_of_weights_or_masks_can_be_something_else(write):
    path = write("d.csv", 'sequence,label,weight,mask\nMKTA,1,"45,321",x\n')
    with pytest.raises(PlftError, match="the mask 'x' may hold only 0 and 1"):
        read(path)
    for records in (read(path, labelled=False), read(path, Columns(mask=None, weight=None))):
        assert (records[0].mask, records[0].weight) == (None, None)


def test_a_folder_with_longer_file_names_is_understood(write, tmp_path):
    write("raw/train_sequences.fasta", FASTA.replace("SET=train", "").replace("SET=val", ""))
    write("raw/test_sequences.fasta", ">c LABEL=1\nMKTT\n")
    assert [each.split for each in load_data(tmp_path / "raw")] == ["train", "train", "test"]


def test_two_files_for_one_split_are_refused(write, tmp_path):
    write("set/train.csv", CSV)
    write("set/train.fasta", FASTA)
    with pytest.raises(PlftError, match=r"both train\.csv and train\.fasta could be the train split"):
        load_data(tmp_path / "set")


def test_a_folder_without_a_train_file_says_what_it_holds(write, tmp_path):
    write("set/genes.csv", CSV)
    with pytest.raises(PlftError, match=r"holds no train file \(it holds genes\.csv\)"):
        load_data(tmp_path / "set")


def test_files_named_for_valid_and_test_decide_the_split(write):
    train = write("a.csv", "sequence,fold\nMKT,\nMKV,extra\n")
    other = write("b.csv", "sequence\nMKA\n")
    records = load_data(train, other, write("c.csv", CSV), columns=Columns(split="fold"))
    assert [each.split for each in records] == ["train", "extra", "valid", "test", "test"]


def test_one_file_without_a_split_column_gets_no_split(write):
    assert [each.split for each in load_data(write("d.csv", "sequence\nMKT\n"))] == [None]


# --- malformed files: one clear line each


PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x10\xff\xfe\xfd"
BROKEN = {
    "empty.csv": (b"", "is empty"),
    "empty.fasta": (b"", "is empty"),
    "empty.parquet": (b"", "cannot be read as Parquet"),
    "empty.jsonl.gz": (gzip.compress(b""), "holds no sequences"),
    "header.csv": (b"sequence,label\n", "holds no sequences"),
    "blank.csv": (b"\n\n\n", "holds no sequences"),
    "nocolumn.csv": (b"seq,label\nMKT,1\n", r"no column 'sequence'\. Columns: seq, label\. Rename one"),
    "semicolon.csv": (b"sequence;label\nMKT;1\n", "separated by a semicolon"),
    "tabs.csv": (b"sequence\tlabel\nMKT\t1\n", "separated by a tab"),
    "commas.tsv": (b"sequence,label\nMKT,1\n", "separated by a comma"),
    "twice.csv": (b"sequence,label,label\nMKT,1,2\n", "several columns are named 'label'"),
    "case.csv": (b"Sequence,SEQUENCE\nMKT,MKT\n", "'Sequence'; 'SEQUENCE' could all be 'sequence'"),
    "few.csv": (b"sequence,label\nMKT,1\nMKT\n", "row 2: 1 fields where the header has 2"),
    "many.csv": (b"sequence,label\nMKT,1,2\n", "row 1: 3 fields where the header has 2"),
    "quote.csv": (b'sequence,label\n"MKT,1\n', "line 2: unexpected end of data"),
    "inquote.csv": (b'sequence,label\n"MKT"x,1\n', "line 2"),
    "nul.csv": (b"sequence,label\nMK\x00T,1\n", "holds a NUL byte"),
    "latin.csv": ("sequence,label\nMKT,é\n".encode("latin-1"), "is not UTF-8 text"),
    "utf16.csv": (CSV.encode("utf-16"), "is not UTF-8 text"),
    "png.csv": (PNG, "is not UTF-8 text"),
    "png.fasta": (PNG, "is not UTF-8 text"),
    "png.parquet": (PNG, "cannot be read as Parquet"),
    "png.jsonl": (PNG, "is not UTF-8 text"),
    "nosequence.csv": (b"id,sequence\nx,\n", r"row 1 \(id x\): has no sequence"),
    "nan.csv": (b"sequence,label\nMKT,1\nNaN,1\n", "row 2: has no sequence"),
    "number.csv": (b"sequence,label\n0.123,1\n", "'0.123' is not a sequence"),
    "umlaut.csv": ("sequence,label\nMÄK,1\n".encode(), "'MÄK' is not a sequence"),
    "weight.csv": (b"sequence,weight\nMKT,heavy\n", "the weight 'heavy' is not a number"),
    "minus.csv": (b"sequence,weight\nMKT,-1\n", "the weight '-1' is not a number of at least 0"),
    "mask.csv": (b"sequence,mask\nMKT,1x1\n", "the mask '1x1' may hold only 0 and 1"),
    "newline.csv": (b'id,sequence\n"a\nb",\n', r"row 1 \(id a\?b\): has no sequence"),
    "start.fasta": (b"MKTV\n>a\nMKT\n", "starts with 'MKTV', but FASTA starts with '>'"),
    "noseq.fasta": (b">a\n>b\nMKT\n", r"row 1 \(id a\): has no sequence"),
    "broken.jsonl": (b'{"sequence":"MKT"}\n{"sequence":\n', "row 2: broken JSON"),
    "array.json": (b'[{"sequence":"MKT"}]', "is one JSON array"),
    "notobject.jsonl": (b'"MKT"\n', "row 1: is not a JSON object"),
    "deep.jsonl": (b'{"sequence":' + b"[" * 100_000, "row 1: broken JSON"),
    "digits.jsonl": (b'{"sequence":"MKT","label":' + b"9" * 5000 + b"}", "row 1: broken JSON"),
    "surrogate.jsonl": (b'{"sequence":"MKT","label":"\\ud800"}', "row 1: broken JSON"),
    "null.jsonl": (b'{"sequence":null}', "row 1: has no sequence"),
    "nanseq.jsonl": (b'{"sequence":NaN}', "row 1: has no sequence"),
    "intseq.jsonl": (b'{"sequence":5}', "the sequence is not text but '5'"),
    "nested.jsonl": (b'{"sequence":"MKT","label":[[1],[2],[3]]}', "the label is a list of lists"),
    "dict.jsonl": (b'{"sequence":"MKT","label":{"a":1}}', "the label is neither text"),
    "nokey.jsonl": (b'{"sequence":"MKT"}\n{"seq":"MKT"}', r"no column 'sequence'\. Columns: seq"),
    "masknan.jsonl": (b'{"sequence":"MKT","mask":[1,NaN,0]}', "the mask '1\\?0'"),
    "splits.csv": (b"sequence,split\n" + b"".join(b"MKT,%d\n" % n for n in range(21)), "21 different splits"),
    "cut.csv.gz": (gzip.compress(CSV.encode() * 50)[:-20], "is damaged or cut short"),
    "cut.fasta.xz": (lzma.compress(FASTA.encode() * 50)[:-20], "is damaged or cut short"),
    "cut.fasta.bz2": (bz2.compress(FASTA.encode() * 50)[:-20], "is damaged or cut short"),
    "plain.csv.gz": (CSV.encode(), r"ends in \.gz but is not compressed"),
    "d.xlsx": (PNG, r"unknown kind of file\. Known endings: \.csv"),
    "d.gz": (gzip.compress(b"x"), "unknown kind of file"),
    "noending": (b"x", "unknown kind of file"),
    "d.parquet.gz": (gzip.compress(b"x"), "unknown kind of file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_malformed_file_is_one_clear_line_that_names_it(write, name):
    content, message = BROKEN[name]
    with pytest.raises(PlftError, match=message) as caught:
        load_data(write(name, content))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_missing_file_is_answered_with_its_nearest_neighbour(write, tmp_path):
    write("train.csv", CSV)
    with pytest.raises(PlftError, match=r"No such file: .*trian\.csv\. Did you mean 'train\.csv'"):
        load_data(tmp_path / "trian.csv")
    with pytest.raises(PlftError, match="No such file"):
        load_data(tmp_path / "nowhere" / "train.csv")
    with pytest.raises(PlftError, match="is a folder"):
        read_records(tmp_path)


def test_parquet_with_unusable_columns_is_one_clear_line(tmp_path):
    with pytest.raises(PlftError, match="the sequence is not text"):
        read(parquet(tmp_path / "a.parquet", sequence=[1, 2]))
    with pytest.raises(PlftError, match="no column 'sequence'"):
        read(parquet(tmp_path / "b.parquet", protein=["MKT"]))
    with pytest.raises(PlftError, match="holds no sequences"):
        read(parquet(tmp_path / "c.parquet", sequence=pa.array([], pa.string())))
    twice = pa.table([["MKT"], ["MKT"]], names=["sequence", "sequence"])
    pq.write_table(twice, tmp_path / "d.parquet")
    with pytest.raises(PlftError, match="several columns are named 'sequence'"):
        read(tmp_path / "d.parquet")


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Change, insert, delete or double a few bytes, or cut the end off."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            data[place:place] = bytes(rng.choices(b'\x00\xff\n\r",;|{}[]>=\\\tAZ09- ', k=rng.randint(1, 3)))
        elif kind == 1:
            del data[place : place + rng.randint(1, 6)]
        elif kind == 2 and place < len(data):
            data[place] = rng.randrange(256)
        elif kind == 3:
            data[place:place] = data[max(0, place - 12) : place]
        elif rng.random() < 0.2:
            del data[place:]
    return bytes(data)


@pytest.mark.parametrize("name", ["d.csv", "d.csv.gz", "d.tsv", "d.jsonl", "d.fasta", "d.fasta.xz", "d.parquet"])
def test_only_plft_errors_escape_from_mutated_files(write, tmp_path, name):
    texts = {"csv": CSV, "tsv": CSV.replace(",", "\t"), "jsonl": JSONL, "fasta": FASTA}
    if name == "d.parquet":
        content = parquet(tmp_path / name, sequence=["MKT", "MK"], label=[[0, 1, 1], [1, 0]]).read_bytes()
    else:
        content = texts[name.split(".")[1]].encode()
        content = {"gz": gzip.compress, "xz": lzma.compress}.get(name.rsplit(".")[-1], bytes)(content)
    rng = random.Random(name)
    messages = []
    for _ in range(150):
        path = write(name, mutated(content, rng))
        try:
            load_data(path)
        except PlftError as error:
            messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)


# --- real files


def test_the_two_dephosphorylation_fasta_files_are_read_with_their_labels(real_data):
    records = load_data(real_data / "dephos_galaxy" / "raw")
    assert [sum(each.split == split for each in records) for split in ("train", "test")] == [201, 50]
    assert {each.label for each in records} == {"0", "1"}
    assert records[0].id == "sp|Q9UQC2|GAB2_HUMAN%598%614"


def test_the_splits_of_the_location_data_are_kept_with_test_hard(real_data):
    records = load_data(real_data / "scl_deeploc1" / "deeploc1.csv.gz")
    counts = {split: sum(each.split == split for each in records) for split in ("train", "valid", "test", "test_hard")}
    assert counts == {"train": 8925, "valid": 1678, "test": 2768, "test_hard": 490}
