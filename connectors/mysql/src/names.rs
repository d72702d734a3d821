//! The names of what is ours in a server: the one place that knows them.
//!
//! Markers and tokens live in a database of their own, whose rows stand in the binlog beside the data. Nothing in it is
//! ever captured, copied, compared or counted.

/// The database.
pub const SCHEMA: &str = "causeway";
/// Of each channel applied into this server, the [`Marker`](causeway_core::Marker) and who may write it. `batch` counts
/// transactions, so that one which leaves the marker as it was shows in the binlog all the same.
pub const APPLIED: &str = "causeway_applied";
/// Of each channel, what was written last to find a moment in the binlog.
pub const WATERMARK: &str = "causeway_watermark";

/// What makes them, statement by statement; nothing where they are.
pub(crate) fn create() -> [String; 3] {
    [
        format!("CREATE DATABASE IF NOT EXISTS {SCHEMA}"),
        format!(
            "CREATE TABLE IF NOT EXISTS {SCHEMA}.{APPLIED} (name VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin \
             PRIMARY KEY, term BIGINT UNSIGNED NOT NULL, batch BIGINT UNSIGNED NOT NULL, marker MEDIUMTEXT CHARACTER SET \
             ascii NOT NULL) ENGINE=InnoDB"
        ),
        format!(
            "CREATE TABLE IF NOT EXISTS {SCHEMA}.{WATERMARK} (name VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin \
             PRIMARY KEY, token VARCHAR(64) CHARACTER SET ascii NOT NULL) ENGINE=InnoDB"
        ),
    ]
}

/// What names a channel in both tables: `LINK.CHANNEL`.
pub fn row(link: &str, channel: &str) -> String {
    format!("{link}.{channel}")
}
