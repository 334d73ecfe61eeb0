"""Golden record batches of another implementation: kafka-python (PyPI), in a throw-away virtual environment.

    python3 -m venv D && D/bin/pip install kafka-python==3.0.12
    D/bin/python make.py write          # writes batch_*.bin beside this file
    D/bin/python make.py check FILE...  # decodes batches of ours and prints what is in them

`engine/tests/golden_batches.rs` holds what they must decode to, and builds the same bytes.
"""
import pathlib
import sys

from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

RECORDS = [
    # timestamp, key, value, headers
    (1700000000000, b"user-1", b"first", []),
    (1700000000250, None, b"x" * 200, [("trace", b"\x00\x01\xff"), ("empty", b""), ("null", None)]),
    (1699999999000, b"user-2", None, [("trace", b"again"), ("trace", b"twice")]),
    (1700000100000, b"", b"", []),
]


def write(name, codec=0, transactional=False, producer=(-1, -1, -1), records=RECORDS):
    builder = DefaultRecordBatchBuilder(2, codec, transactional, *producer, 1 << 20)
    for delta, (timestamp, key, value, headers) in enumerate(records):
        assert builder.append(delta, timestamp, key, value, headers) is not None
    (pathlib.Path(__file__).parent / name).write_bytes(bytes(builder.build()))


def check(path):
    records = MemoryRecords(pathlib.Path(path).read_bytes())
    while records.has_next():
        batch = records.next_batch()
        assert batch.validate_crc()
        print(f"batch base_offset={batch.base_offset} epoch={batch.leader_epoch} producer={batch.producer_id}")
        for record in batch:
            print(record.offset, record.timestamp, record.key, record.value, record.headers)


if sys.argv[1] == "write":
    write("batch_plain.bin")
    write("batch_one.bin", records=[(0, None, b"v", [])])
    write("batch_idempotent.bin", producer=(4711, 3, 2147483647))
    write("batch_transactional.bin", transactional=True, producer=(4711, 3, 12))
    write("batch_gzip.bin", codec=1)
else:
    for path in sys.argv[2:]:
        check(path)
