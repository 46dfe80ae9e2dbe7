//! How hard to compress: harder while packs wait for the repository anyway. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// zstd levels that a backup may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    minimum: i32,
    maximum: i32,
}

impl Compression {
    /// Level 3, and up to 6 while uploads are what takes the time. Beyond 6 hardly anything gets smaller, for much more work.
    pub const AUTO: Self = Self { minimum: 3, maximum: 6 };
    /// The lowest and the highest level there is.
    const LEVELS: (i32, i32) = (1, 19);

    /// Levels from `minimum` to `maximum`, equal for a fixed one; `None` unless 1 <= minimum <= maximum <= 19.
    pub fn new(minimum: i32, maximum: i32) -> Option<Self> {
        let allowed = Self::LEVELS.0 <= minimum && minimum <= maximum && maximum <= Self::LEVELS.1;
        allowed.then_some(Self { minimum, maximum })
    }
}

impl Default for Compression {
    fn default() -> Self {
        Self::AUTO
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::AUTO => f.write_str("auto"),
            Self { minimum, maximum } if minimum == maximum => write!(f, "{minimum}"),
            Self { minimum, maximum } => write!(f, "{minimum}..{maximum}"),
        }
    }
}

impl FromStr for Compression {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self::AUTO);
        }
        let (minimum, maximum) = text.split_once("..").unwrap_or((text, text));
        let levels = minimum.parse().ok().zip(maximum.parse().ok());
        levels
            .and_then(|(minimum, maximum)| Self::new(minimum, maximum))
            .ok_or("expected a level from 1 to 19, two of them as in 3..9, or auto")
    }
}

/// How long encoding a chunk takes at each level from 1, checking included, against level 3. Measured on real guests up to level 12, where it
/// counts; above it is enough to know that it is very long.
const WORK: [f64; 19] =
    [0.8, 0.9, 1.0, 1.3, 2.2, 2.7, 3.3, 3.5, 4.1, 6.0, 7.5, 9.0, 12.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0];

/// What filling one pack took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filled {
    /// Since the pack before was full.
    pub took: Duration,
    /// Of that, spent in encoding chunks.
    pub encoding: Duration,
    /// Of that, spent in waiting until another pack was stored.
    pub waiting: Duration,
}

/// Chooses the level, from pack to pack.
#[derive(Debug)]
pub(super) struct Effort {
    bounds: Compression,
    level: i32,
}

impl Effort {
    /// Begins at the lowest level.
    pub fn new(bounds: Compression) -> Self {
        Self { bounds, level: bounds.minimum }
    }

    /// The level to compress with now.
    pub fn level(&self) -> i32 {
        self.level
    }

    /// Learns what a pack took, and chooses the level for the next one: the highest at which encoding would not take longer than
    /// nine tenths of what is waited for now. As soon as hardly anything is waited for, it goes half the way back.
    pub fn learn(&mut self, pack: Filled) {
        let [took, encoding, waiting] =
            [pack.took, pack.encoding, pack.waiting].map(|time| time.as_secs_f64());
        if waiting < took / 20.0 {
            self.level = self.bounds.minimum + (self.level - self.bounds.minimum) / 2;
            return;
        }
        let fits = |level: i32| encoding * (work(level) / work(self.level) - 1.0) <= waiting * 0.9;
        self.level =
            (self.level..=self.bounds.maximum).rev().find(|&level| fits(level)).unwrap_or(self.level);
    }
}

fn work(level: i32) -> f64 {
    usize::try_from(level - 1).ok().and_then(|index| WORK.get(index)).copied().unwrap_or(f64::INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Packs of a backup whose uploads take `upload` seconds each, all in all, and whose encoders take `encode` at level 3. What is real may
    /// differ by `off` from what the controller believes. Returns the levels and the time that each pack took.
    fn backup(effort: &mut Effort, packs: usize, encode: f64, upload: f64, off: f64) -> Vec<(i32, f64)> {
        // Two packs are in flight; a third can be filled meanwhile.
        let mut done = [0.0, 0.0];
        let (mut now, mut last, mut taken) = (0.0, 0.0, Vec::new());
        for pack in 0..packs {
            let level = effort.level();
            let encoding = encode * (1.0 + (work(level) - 1.0) * off);
            now += encoding + encode / 10.0;
            let free: f64 = done[pack % 2];
            let waiting = (free - now).max(0.0);
            now += waiting;
            // Both share the line.
            done[pack % 2] = now.max(done[(pack + 1) % 2]) + upload;
            let times = [now - last, encoding, waiting].map(Duration::from_secs_f64);
            effort.learn(Filled { took: times[0], encoding: times[1], waiting: times[2] });
            taken.push((level, now - last));
            last = now;
        }
        taken
    }

    #[test]
    fn a_slow_line_gets_the_highest_level_and_a_fast_one_the_lowest() {
        let mut effort = Effort::new(Compression::AUTO);
        let levels: Vec<_> =
            backup(&mut effort, 12, 1.0, 30.0, 1.0).iter().map(|(level, _)| *level).collect();
        assert_eq!(levels[..3], [3, 3, 3], "nothing is known yet");
        assert!(levels[4..].iter().all(|&level| level == 6), "{levels:?}");
        let levels = backup(&mut effort, 6, 1.0, 0.1, 1.0);
        assert!(levels[3..].iter().all(|(level, _)| *level == 3), "{levels:?}");
    }

    #[test]
    fn between_them_it_rises_until_encoding_takes_what_the_line_takes() {
        let mut effort = Effort::new(Compression::new(1, 19).unwrap());
        let levels = backup(&mut effort, 30, 1.0, 3.0, 1.0);
        assert!(levels[10..].iter().all(|(level, _)| (5..=6).contains(level)), "{levels:?}");
    }

    #[test]
    fn a_fixed_level_stays() {
        for level in [1, 3, 19] {
            let mut effort = Effort::new(Compression::new(level, level).unwrap());
            for upload in [0.0, 100.0, 0.0] {
                let levels = backup(&mut effort, 5, 1.0, upload, 1.0);
                assert!(levels.iter().all(|(used, _)| *used == level));
            }
        }
    }

    proptest! {
        /// However long uploads and encoding take, and though the table is wrong by half: never below the minimum, never above the maximum, and
        /// all in all hardly slower than the lowest level would have been.
        #[test]
        fn it_keeps_its_bounds_and_costs_hardly_any_time(
            minimum in 1i32..=9,
            more in 0i32..=6,
            encode in 0.05f64..5.0,
            upload in 0.0f64..30.0,
            off in 0.6f64..1.4,
        ) {
            let bounds = Compression::new(minimum, minimum + more).unwrap();
            let packs = backup(&mut Effort::new(bounds), 60, encode, upload, off);
            prop_assert!(packs.iter().all(|(level, _)| (minimum..=minimum + more).contains(level)));
            let fixed = Compression::new(minimum, minimum).unwrap();
            let lowest = backup(&mut Effort::new(fixed), 60, encode, upload, off);
            let seconds = |packs: &[(i32, f64)]| packs.iter().map(|(_, took)| took).sum::<f64>();
            prop_assert!(seconds(&packs) <= seconds(&lowest) * 1.25, "{} against {}", seconds(&packs), seconds(&lowest));
        }
    }

    #[test]
    fn levels_are_read_as_they_are_shown() {
        for text in ["auto", "1", "3", "19", "3..9", "1..19"] {
            assert_eq!(text.parse::<Compression>().unwrap().to_string(), text);
        }
        assert_eq!("3..6".parse(), Ok(Compression::AUTO));
        assert_eq!("4..4".parse::<Compression>().unwrap().to_string(), "4");
        for text in ["", "0", "20", "-1", "9..3", "3..", "..9", "3..20", "high", "3...9", "3..=9"] {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
    }
}
