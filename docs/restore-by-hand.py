#!/usr/bin/env python3
"""Reads a backup repository in a folder without Landfast.

    restore-by-hand.py REPOSITORY KEYFILE names
    restore-by-hand.py REPOSITORY KEYFILE ARCHIVE list
    restore-by-hand.py REPOSITORY KEYFILE ARCHIVE files BACKUP TARGET
    restore-by-hand.py REPOSITORY KEYFILE ARCHIVE wal TARGET
    restore-by-hand.py REPOSITORY KEYFILE SERIES list
    restore-by-hand.py REPOSITORY KEYFILE SERIES tree SNAPSHOT TARGET

`names` prints what there is: an archive for each managed PostgreSQL (`shop/production/main`), a series for each volume
(`shop/production/_volumes/uploads`) and each external PostgreSQL (`shop/production/_dumps/main`).
`files` writes the data folder of a backup, `wal` the WAL the archive has, as files that `restore_command = 'cp TARGET/%f %p'` finds.
`tree` writes the files of a snapshot, with their owners (as root), rights and times; of a dump that is TARGET/dump, for `pg_restore`.
Needs Python 3.9, its package `cryptography`, and libzstd. A repository in a bucket is copied to a folder first, as it is.
"""

import ctypes
import ctypes.util
import hashlib
import json
import os
import struct
import sys

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HEAD = 8 + 1 + 8 + 16  # magic, format, id of the key, salt

zstd = ctypes.CDLL(ctypes.util.find_library("zstd") or "libzstd.so.1")
zstd.ZSTD_getFrameContentSize.restype = ctypes.c_ulonglong
zstd.ZSTD_decompress.restype = ctypes.c_size_t


def decompress(data):
    length = zstd.ZSTD_getFrameContentSize(data, ctypes.c_size_t(len(data)))
    target = ctypes.create_string_buffer(max(length, 1))
    done = zstd.ZSTD_decompress(
        target, ctypes.c_size_t(length), data, ctypes.c_size_t(len(data))
    )
    if done != length:
        raise SystemExit("an object does not decompress")
    return target.raw[:length]


class Repository:
    def __init__(self, folder, keyfile):
        self.folder = folder
        head, key_id, key = open(keyfile).read().splitlines()
        assert head == "landfast backup key 1", "not a key file"
        self.key_id = bytes.fromhex(key_id.split()[1])
        self.key = bytes.fromhex(key.split()[1])

    def cipher(self, name, sealed):
        if sealed[:8] != b"LFBACKUP" or sealed[8] != 1:
            raise SystemExit(f"{name}: not an object of format 1")
        if sealed[9:17] != self.key_id:
            raise SystemExit(f"{name}: needs the key {sealed[9:17].hex()}")
        derived = HKDF(hashes.SHA256(), 32, sealed[17:HEAD], b"object")
        return AESGCM(derived.derive(self.key))

    def frame(self, cipher, name, number, sealed):
        nonce = number.to_bytes(12, "big")
        bound = number.to_bytes(8, "big") + name.encode()
        opened = cipher.decrypt(nonce, sealed, bound)
        return opened[1:] if opened[0] == 0 else decompress(opened[1:])

    def sealed(self, name):
        with open(os.path.join(self.folder, name), "rb") as file:
            return file.read()

    def get(self, name):
        sealed = self.sealed(name)
        return self.frame(self.cipher(name, sealed), name, 0, sealed[HEAD:])

    def names(self, below):
        root = os.path.join(self.folder, below)
        found = []
        for folder, _, files in os.walk(root):
            for name in files:
                if not name.startswith("."):
                    found.append(os.path.relpath(os.path.join(folder, name), self.folder))
        return sorted(found)


def names(repository):
    found = set()
    for name in repository.names(""):
        for part in ("/backups/", "/snapshots/"):
            if part in name and name.endswith("/manifest"):
                found.add(name.split(part, 1)[0])
    return sorted(found)


def backups(repository, archive):
    for name in repository.names(f"{archive}/backups"):
        if name.endswith("/manifest"):
            yield json.loads(repository.get(name))


def restore_files(repository, archive, backup, target):
    manifest = json.loads(repository.get(f"{archive}/backups/{backup}/manifest"))
    places = repository.get(f"{archive}/backups/{backup}/map")
    assert hashlib.sha256(places).hexdigest() == manifest["map"], "not the map of this backup"
    tree = manifest["tree"]
    os.mkdir(target, 0o700)
    writes = {}
    at = 0
    for entry in tree["entries"]:
        if any(part in ("", ".", "..") for part in entry["path"].split("/")):
            raise SystemExit(f"{entry['path']!r} leads out of the folder")
        path = os.path.join(target, entry["path"])
        if entry["kind"] == "folder":
            os.makedirs(path, 0o700, exist_ok=True)
            continue
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, entry["mode"]))
        (count,) = struct.unpack_from("<I", places, at)
        at += 4
        place = 0
        for _ in range(count):
            frame, offset, length = struct.unpack_from("<III", places, at)
            at += 12
            writes.setdefault(frame, []).append((path, place, offset, length))
            place += length
    write_pages(repository, tree["packs"], writes)
    print(f"{manifest['bytes']} bytes; WAL is needed from {manifest['start']} to at least {manifest['stop']}")


def write_pages(repository, packs, writes):
    first = 0
    for pack in packs:
        sealed = repository.sealed(pack["name"])
        cipher = repository.cipher(pack["name"], sealed)
        start = HEAD
        for number, length in enumerate(pack["frames"]):
            wanted = writes.get(first + number)
            if wanted:
                data = repository.frame(cipher, pack["name"], number, sealed[start : start + length])
                for path, place, offset, size in wanted:
                    with open(path, "r+b") as file:
                        file.seek(place)
                        file.write(data[offset : offset + size])
            start += length
        first += len(pack["frames"])


def snapshots(repository, series):
    """Those that the list names, oldest first; one that is not as the list says is refused."""
    known = json.loads(repository.get(f"{series}/list"))
    for number, digest in sorted(known["snapshots"].items()):
        name = f"{series}/snapshots/{number}/manifest"
        manifest = repository.get(name)
        if hashlib.sha256(manifest).hexdigest() != digest:
            raise SystemExit(f"{name}: not the one that the list speaks of")
        yield json.loads(manifest)


def raw(text):
    """A path as the file system has it: what is no UTF-8 is written \\xFF, and a backslash is doubled."""
    found = bytearray()
    rest = text.encode()
    while rest:
        if rest[:1] != b"\\":
            found += rest[:1]
            rest = rest[1:]
        elif rest[1:2] == b"\\":
            found += b"\\"
            rest = rest[2:]
        else:
            found.append(int(rest[2:4], 16))
            rest = rest[4:]
    return bytes(found)


def restore_tree(repository, series, number, target):
    manifest = next((one for one in snapshots(repository, series) if one["id"] == number), None)
    if manifest is None:
        raise SystemExit(f"there is no snapshot {number}")
    parts = {}
    for part in ("entries", "map"):
        parts[part] = repository.get(f"{series}/snapshots/{number}/{part}")
        assert hashlib.sha256(parts[part]).hexdigest() == manifest[part], f"not the {part} of this snapshot"
    entries, places = json.loads(parts["entries"]), parts["map"]
    root = os.fsencode(os.path.abspath(target))
    os.mkdir(root, 0o700)
    folders, files, names_made = {b""}, set(), set()
    writes = {}
    at = 0
    for entry in entries:
        path = entry["path"] = raw(entry["path"])
        if not path and entry["kind"] == "folder":
            continue
        # Nothing that a snapshot says leads out of the folder, or through a link: those come last.
        parent, _, name = path.rpartition(b"/")
        if name in (b"", b".", b"..") or b"\0" in path or path[:1] == b"/" or parent not in folders:
            raise SystemExit(f"{path!r} lies in no folder of the snapshot")
        if path in names_made:
            raise SystemExit(f"{path!r} is there twice")
        names_made.add(path)
        full = os.path.join(root, path)
        if entry["kind"] == "folder":
            os.mkdir(full, 0o700)
            folders.add(path)
        elif entry["kind"] == "file":
            os.close(os.open(full, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
            (count,) = struct.unpack_from("<I", places, at)
            at += 4
            place = 0
            for _ in range(count):
                frame, offset, length = struct.unpack_from("<III", places, at)
                at += 12
                writes.setdefault(frame, []).append((full, place, offset, length))
                place += length
            files.add(path)
        elif entry["kind"] == "hard_link":
            entry["to"] = raw(entry["to"])
            if entry["to"] not in files:
                raise SystemExit(f"{path!r} is the same as no file of the snapshot")
        elif entry["kind"] != "symlink":
            raise SystemExit(f"{path!r} is of no kind that a snapshot has")
    write_pages(repository, manifest["packs"], writes)
    for entry in entries:
        full = os.path.join(root, entry["path"])
        if entry["kind"] == "hard_link":
            os.link(os.path.join(root, entry["to"]), full, follow_symlinks=False)
        elif entry["kind"] == "symlink":
            os.symlink(raw(entry["target"]), full)
    # From the deepest up: a folder may be closed, and its time changes with what is made in it.
    for entry in reversed(entries):
        # A further name of a file has its rights and times already.
        if entry["kind"] == "hard_link":
            continue
        full = os.path.join(root, entry["path"])
        is_link = entry["kind"] == "symlink"
        if os.geteuid() == 0:
            os.chown(full, entry["uid"], entry["gid"], follow_symlinks=False)
        if not is_link:
            os.chmod(full, entry["mode"] if os.geteuid() == 0 else entry["mode"] & 0o1777)
        seconds, nanoseconds = entry["changed"]
        changed = seconds * 1_000_000_000 + nanoseconds
        os.utime(full, ns=(changed, changed), follow_symlinks=False)
    for note in manifest.get("notes", []):
        print(f"not as one would expect: {note}")
    print(f"{manifest['bytes']} bytes, as of {manifest['at']}")


def restore_wal(repository, archive, target):
    os.makedirs(target, exist_ok=True)
    pages = [json.loads(repository.get(name)) for name in repository.names(f"{archive}/ledger") if not name.endswith("/head")]
    size = pages[-1]["segment_bytes"]
    each = (1 << 32) // size
    for name in repository.names(f"{archive}/wal"):
        _, timeline, place = name.rsplit("/", 2)
        start, end = (int(part, 16) for part in place.split("-"))
        segment = start // size
        file_name = f"{timeline}{segment // each:08X}{segment % each:08X}"
        path = os.path.join(target, file_name)
        if not os.path.exists(path):
            with open(path, "wb") as file:
                file.truncate(size)
        with open(path, "r+b") as file:
            file.seek(start % size)
            file.write(repository.get(name))
    for name in repository.names(f"{archive}/history"):
        with open(os.path.join(target, name.rsplit("/", 1)[1] + ".history"), "wb") as file:
            file.write(repository.get(name))


def main():
    if len(sys.argv) < 4:
        raise SystemExit(__doc__)
    repository = Repository(*sys.argv[1:3])
    if sys.argv[3:] == ["names"]:
        print("\n".join(names(repository)))
        return
    if len(sys.argv) < 5:
        raise SystemExit(__doc__)
    archive, verb, *rest = sys.argv[3:]
    is_series = bool(repository.names(f"{archive}/snapshots"))
    if verb == "list" and is_series:
        for manifest in snapshots(repository, archive):
            print(manifest["id"], manifest["at"], manifest["content"]["kind"], manifest["bytes"])
    elif verb == "list":
        for manifest in backups(repository, archive):
            print(manifest["id"], manifest["state"], manifest["start"], manifest["stop"], manifest["bytes"])
    elif verb == "tree":
        restore_tree(repository, archive, *rest)
    elif verb == "files":
        restore_files(repository, archive, *rest)
    elif verb == "wal":
        restore_wal(repository, archive, *rest)
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
