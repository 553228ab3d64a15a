//! Watch the names of the files of Unix sockets.

use log::{debug, warn};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::socket::socket_file::Created;

/// Watch for changes of the files' names.
pub(super) fn watch_names<'a>(files: impl Iterator<Item = &'a Created>) -> Option<Inotify> {
    let mut files = files.peekable();
    files.peek()?;
    let unwatched =
        |error| warn!("the paths of Unix sockets are looked after only when generations come and go: {error}");
    let names = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(unwatched).ok()?;
    files.for_each(|file| watch_name(&names, file).unwrap_or_else(unwatched));
    Some(names)
}

/// Watch the file itself, for its folder may be busy. One that was given to another user may not be watched; then the
/// folder has to do.
fn watch_name(names: &Inotify, file: &Created) -> nix::Result<()> {
    let of_file = AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_DONT_FOLLOW;
    let watched = names.add_watch(file.watched(), of_file).or_else(|errno| {
        let of_folder = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_MOVED_TO;
        if errno == Errno::EACCES { names.add_watch(file.folder(), of_folder) } else { Err(errno) }
    });
    watched.map(|_| debug!("{} is watched", file.watched().display()))
}
