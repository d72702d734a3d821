/// One of the two sites of a link: the first or the second that `[link] sites` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// The site named first. It is the *authority* of the link's channels.
    First,
    /// The site named second.
    Second,
}

impl Site {
    /// Both, the first one first.
    pub const BOTH: [Site; 2] = [Site::First, Site::Second];

    /// The one that has `name` among the names of a link's sites.
    pub fn named(name: &str, sites: &[String; 2]) -> Option<Site> {
        Site::BOTH.into_iter().find(|site| sites[site.index()] == name)
    }

    /// The other site.
    pub fn peer(self) -> Site {
        match self {
            Site::First => Site::Second,
            Site::Second => Site::First,
        }
    }

    /// 0 for the first, 1 for the second: an index into a pair.
    pub fn index(self) -> usize {
        self as usize
    }
}
