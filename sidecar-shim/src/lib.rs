//! The shim: one poll loop that follows a pod's files and fills a shared-memory ring.
