#!/usr/bin/env python3
"""A whole native client in plain Python, written from docs/protocol.md alone: nothing to install, nothing generated.

    docs/native_client.py HOST:PORT TOPIC      creates the topic if need be, appends three records, reads them back

It is meant to be read. A real client would use flatc's generated code and a compiled CRC; here both are a few lines, so
that the bytes can be seen. Exit code 0: what was read is what was written.
"""

import socket
import struct
import sys
import time

# ---- Flatbuffers, as much of them as heads need ----
# A table is a dict from field number (its place in the schema, from 0) to a value made by the functions below.


def scalar(format, value):
    return ("scalar", "<" + format, value)


def text(value):
    return ("text", value.encode())


def tables(values):
    return ("tables", values)


def topic_id(number):
    return ("struct", struct.pack("<QQ", number & (1 << 64) - 1, number >> 64))


def pad(out, to):
    out.extend(bytes(-len(out) % to))


def flatbuffer(root):
    out = bytearray(4)
    struct.pack_into("<I", out, 0, put_table(out, root))
    return bytes(out)


def put_table(out, fields):
    """Appends a table and all that hangs on it; returns its position. Offsets point forward, from where they stand."""
    slots = max(fields, default=-1) + 1
    pad(out, 8)
    layout = len(out)
    out.extend(bytes(4 + 2 * slots))
    pad(out, 8)
    table = len(out)
    out.extend(struct.pack("<i", table - layout))
    later = []
    for slot, value in sorted(fields.items()):
        kind = value[0]
        if kind == "scalar":
            pad(out, struct.calcsize(value[1]))
            struct.pack_into("<H", out, layout + 4 + 2 * slot, len(out) - table)
            out.extend(struct.pack(value[1], value[2]))
        elif kind == "struct":
            pad(out, 8)
            struct.pack_into("<H", out, layout + 4 + 2 * slot, len(out) - table)
            out.extend(value[1])
        else:
            pad(out, 4)
            struct.pack_into("<H", out, layout + 4 + 2 * slot, len(out) - table)
            later.append((len(out), value))
            out.extend(bytes(4))
    struct.pack_into("<HH", out, layout, 4 + 2 * slots, len(out) - table)
    for at, value in later:
        pad(out, 4)
        struct.pack_into("<I", out, at, len(out) - at)
        if value[0] == "text":
            out.extend(struct.pack("<I", len(value[1])) + value[1] + b"\0")
        else:
            vector = len(out)
            out.extend(struct.pack("<I", len(value[1])) + bytes(4 * len(value[1])))
            for i, item in enumerate(value[1]):
                entry = vector + 4 + 4 * i
                struct.pack_into("<I", out, entry, put_table(out, item) - entry)
    return table


class Table:
    """Reads a table of a head that came from a server that we trust."""

    def __init__(self, head, at=None):
        self.head = head
        self.at = struct.unpack_from("<I", head, 0)[0] if at is None else at
        self.layout = self.at - struct.unpack_from("<i", head, self.at)[0]

    def _field(self, slot):
        if 4 + 2 * slot >= struct.unpack_from("<H", self.head, self.layout)[0]:
            return None
        within = struct.unpack_from("<H", self.head, self.layout + 4 + 2 * slot)[0]
        return self.at + within if within else None

    def scalar(self, slot, format, default):
        at = self._field(slot)
        return default if at is None else struct.unpack_from("<" + format, self.head, at)[0]

    def _target(self, slot):
        at = self._field(slot)
        return None if at is None else at + struct.unpack_from("<I", self.head, at)[0]

    def text(self, slot):
        at = self._target(slot)
        if at is None:
            return ""
        length = struct.unpack_from("<I", self.head, at)[0]
        return self.head[at + 4 : at + 4 + length].decode()

    def tables(self, slot):
        at = self._target(slot)
        if at is None:
            return []
        entries = [at + 4 + 4 * i for i in range(struct.unpack_from("<I", self.head, at)[0])]
        return [Table(self.head, entry + struct.unpack_from("<I", self.head, entry)[0]) for entry in entries]

    def id(self, slot):
        at = self._field(slot)
        if at is None:
            return None
        low, high = struct.unpack_from("<QQ", self.head, at)
        return high << 64 | low


# ---- Record batches (big-endian) ----


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def varint(value):
    value = value << 1 ^ value >> 63
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def read_varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value >> 1 ^ -(value & 1), at


def batch(records, timestamp_ms):
    body = b""
    for i, (key, value) in enumerate(records):
        record = b"\0" + varint(0) + varint(i) + varint(len(key)) + key + varint(len(value)) + value + varint(0)
        body += varint(len(record)) + record
    count = len(records)
    covered = struct.pack(">hiqqqhii", 0, count - 1, timestamp_ms, timestamp_ms, -1, -1, -1, count) + body
    return struct.pack(">qiibI", 0, 9 + len(covered), -1, 2, crc32c(covered)) + covered


def read_batches(data):
    """Yields (offset, key, value) of uncompressed batches."""
    while data:
        base_offset, length, _, magic, crc = struct.unpack_from(">qiibI", data)
        this, data = data[: 12 + length], data[12 + length :]
        assert magic == 2 and crc == crc32c(this[21:]), "a damaged batch"
        count, at = struct.unpack_from(">i", this, 57)[0], 61
        for _ in range(count):
            _, at = read_varint(this, at)
            _, at = read_varint(this, at + 1)
            offset_delta, at = read_varint(this, at)
            parts = []
            for _ in range(2):
                size, at = read_varint(this, at)
                parts.append(this[at : at + size] if size >= 0 else None)
                at += max(size, 0)
            headers, at = read_varint(this, at)
            for _ in range(2 * headers):
                size, at = read_varint(this, at)
                at += max(size, 0)
            yield base_offset + offset_delta, parts[0], parts[1]


# ---- Frames and requests ----

HANDSHAKE, PRODUCE, FETCH, METADATA, CREATE_TOPICS = 1, 2, 3, 4, 6
TOPIC_ALREADY_EXISTS = 22


class Failed(Exception):
    def __init__(self, code, message):
        super().__init__(f"error {code}: {message}")
        self.code = code


class Connection:
    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port), timeout=30)
        self.correlation_id = 0
        hello = {0: scalar("H", 1), 1: scalar("H", 1), 3: text("native_client.py"), 4: text("python")}
        answer, _ = self.ask(HANDSHAKE, hello)
        check(answer)

    def ask(self, api, head, payload=b""):
        """Sends a request and waits for its answer (it could send many before it reads)."""
        self.correlation_id += 1
        head = flatbuffer(head)
        prefix = struct.pack("<IIIHBB", 12 + len(head) + len(payload), len(head), self.correlation_id, api, 1, 0)
        self.socket.sendall(prefix + head + payload)
        frame_bytes, head_bytes, correlation_id, answered, version, flags = struct.unpack("<IIIHBB", self.read(16))
        assert (version, flags) == (1, 0), "not a frame"
        body = self.read(frame_bytes - 12)
        head = Table(body[:head_bytes])
        if answered == 0:
            check(head)
        assert (correlation_id, answered) == (self.correlation_id, api), "answers come in order"
        return head, body[head_bytes:]

    def read(self, count):
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise ConnectionError("the server closed the connection")
            data += more
        return data


def check(result):
    """Every result has its error code in field 0 and its message in field 1."""
    code = result.scalar(0, "H", 0)
    if code:
        raise Failed(code, result.text(1))


def create_topic(connection, name):
    topic = {0: text(name), 1: scalar("I", 1)}
    answer, _ = connection.ask(CREATE_TOPICS, {0: tables([topic])})
    try:
        check(answer.tables(0)[0])
    except Failed as failure:
        if failure.code != TOPIC_ALREADY_EXISTS:
            raise


def find_leader(connection, name, partition):
    """Returns the topic's id and the address of the shard that leads the partition."""
    answer, _ = connection.ask(METADATA, {1: tables([{1: text(name)}])})
    topic = answer.tables(3)[0]
    check(topic)
    shards = {(s.scalar(0, "I", 0), s.scalar(1, "H", 0)): (s.text(2), s.scalar(3, "H", 0)) for s in answer.tables(2)}
    for found in topic.tables(4):
        if found.scalar(1, "I", 0) == partition:
            return topic.id(2), shards[found.scalar(2, "I", 0), found.scalar(3, "H", 0)]
    raise Failed(20, f"topic {name} has no partition {partition}")


def produce(connection, topic, partition, records):
    payload = batch(records, int(time.time() * 1000))
    to = {0: topic_id(topic), 2: scalar("I", partition), 3: scalar("I", len(payload))}
    answer, _ = connection.ask(PRODUCE, {0: scalar("b", -1), 2: tables([to])}, payload)
    result = answer.tables(1)[0]
    check(result)
    return result.scalar(2, "Q", None)


def fetch(connection, topic, partition, offset):
    at = {0: topic_id(topic), 2: scalar("I", partition), 3: scalar("Q", offset)}
    answer, payload = connection.ask(FETCH, {3: tables([at])})
    check(answer.tables(1)[0])
    return [record for record in read_batches(payload) if record[0] >= offset]


def main():
    if len(sys.argv) != 3 or ":" not in sys.argv[1]:
        sys.exit(__doc__)
    host, port = sys.argv[1].rsplit(":", 1)
    name, partition = sys.argv[2], 0
    anyone = Connection(host, int(port))
    create_topic(anyone, name)
    topic, (host, port) = find_leader(anyone, name, partition)
    leader = Connection(host, port)
    records = [(b"key %d" % i, b"value %d" % i) for i in range(3)]
    base_offset = produce(leader, topic, partition, records)
    print(f"appended {len(records)} records to topic {topic:032x} partition {partition} at offset {base_offset}")
    read = []
    while len(read) < len(records):
        read += fetch(leader, topic, partition, base_offset + len(read))
    for offset, key, value in read:
        print(offset, key.decode(), value.decode())
    expected = [(base_offset + i, key, value) for i, (key, value) in enumerate(records)]
    sys.exit(0 if read[: len(records)] == expected else "what was read is not what was written")


if __name__ == "__main__":
    main()
