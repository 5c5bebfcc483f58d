"""PDFs for tests, made by hand."""

from __future__ import annotations


def made(
    *contents: bytes, size: tuple[float, float] = (612, 792), page: bytes = b"", catalog: bytes = b"",
    trailer: bytes = b"", more: tuple[bytes, ...] = (),
) -> bytes:  # fmt: skip
    """A PDF with a page for each of ``contents``, what is drawn on it; ``size`` in points.

    ``page``, ``catalog`` and ``trailer`` are further entries of these dictionaries, and ``more`` further
    objects, numbered from 3.
    """
    first = 3 + len(more)
    kids = b" ".join(b"%d 0 R" % (first + 2 * index) for index in range(len(contents)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R %s >>" % catalog,
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(contents)),
        *more,
    ]
    for index, content in enumerate(contents):
        box = b"%g %g" % size
        inner = b"/MediaBox [0 0 %s] /Contents %d 0 R %s" % (box, first + 2 * index + 1, page)
        objects.append(b"<< /Type /Page /Parent 2 0 R %s >>" % inner)
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    data, offsets = b"%PDF-1.7\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    count = len(objects) + 1
    data, start = data + b"xref\n0 %d\n0000000000 65535 f \n%s" % (count, table), len(data)
    return data + b"trailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (
        count,
        trailer,
        start,
    )


def encrypted() -> bytes:
    """A PDF that no password opens."""
    junk = b"5A" * 32
    inner = b"/Filter /Standard /V 1 /R 2 /P -4 /O <%s> /U <%s>" % (junk, junk)
    return made(b"", trailer=b"/Encrypt << %s >> /ID [<00> <00>]" % inner)
