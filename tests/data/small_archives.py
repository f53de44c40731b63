"""Archives of a few members, good and bad ones."""

import io
import tarfile
import zipfile

from jaxrec.data.unpack import MARKER


def zip_of(path, *members):
    """Members are (name, content) or a ZipInfo with content."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def tar_of(path, *members):
    """Members are (name, content) or (name, type of member, target of the link)."""
    with tarfile.open(path, "w:gz") as file:
        for name, content, *rest in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes) and not rest:
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content, rest[0]
                file.addfile(info)
    return path


def files_in(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MARKER
    }
