//! The names of what is ours in a server: the one place that knows them.
//!
//! Markers and tokens live in a database of their own, whose rows stand in the binlog beside the data. Nothing in it is
//! ever captured, copied, compared or counted.

/// The database.
pub const SCHEMA: &str = "causeway";
/// Of each channel applied into this server, the [`Marker`](causeway_core::Marker) and who may write it. `batch` counts
/// transactions, so that one which leaves the marker as it was shows in the binlog all the same. `ddl` says which statement
/// is about to be run that commits by itself.
pub const APPLIED: &str = "causeway_applied";
/// Of each channel, what was written last to find a moment in the binlog.
pub const WATERMARK: &str = "causeway_watermark";

/// Of each channel, what this server's own statements took from its tables.
pub const GONE: &str = "causeway_gone";

/// What makes them, statement by statement; nothing where they are.
pub(crate) fn create() -> [String; 4] {
    [
        format!("CREATE DATABASE IF NOT EXISTS {SCHEMA}"),
        format!(
            "CREATE TABLE IF NOT EXISTS {SCHEMA}.{APPLIED} (name VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin \
             PRIMARY KEY, term BIGINT UNSIGNED NOT NULL, batch BIGINT UNSIGNED NOT NULL, marker MEDIUMTEXT CHARACTER SET \
             ascii NOT NULL, ddl VARCHAR(64) CHARACTER SET ascii) ENGINE=InnoDB"
        ),
        format!(
            "CREATE TABLE IF NOT EXISTS {SCHEMA}.{WATERMARK} (name VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin \
             PRIMARY KEY, token VARCHAR(64) CHARACTER SET ascii NOT NULL) ENGINE=InnoDB"
        ),
        format!(
            "CREATE TABLE IF NOT EXISTS {SCHEMA}.{GONE} (name VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin, space \
             VARCHAR(130) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin, col VARCHAR(64) CHARACTER SET utf8mb4 COLLATE \
             utf8mb4_bin, PRIMARY KEY (name, space, col)) ENGINE=InnoDB"
        ),
    ]
}

/// What names a channel in both tables: `LINK.CHANNEL`.
pub fn row(link: &str, channel: &str) -> String {
    format!("{link}.{channel}")
}
