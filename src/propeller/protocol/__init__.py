"""The wire format: messages, topics, identifiers. No I/O.

``S`` and ``H`` name two versions of absmach/propeller whose messages are read and written here: that of its FL demo's guide
(February 2026, commit 2341c9d) and a later one (August 2026, commit 102e676), which renamed settings and added fields.
"""
