// Which files a list of names means: files, folders and globs, always in the same order.
#pragma once

#include <string>
#include <vector>

namespace sherd {

/// The regular files that `patterns` name: pattern by pattern, each sorted by path bytes, each file once (where it
/// is named first).
/// - An existing file is itself, even if its name looks like a glob.
/// - A folder is all files below it, except those that are hidden or below a hidden folder.
/// - Otherwise a glob: * ? [...] within a name, ** for any number of folders. Hidden names match only a pattern that
///   starts with a dot. A folder that matches counts as that folder.
/// Links to files are followed, links to folders only where they are named or matched by a part other than **.
/// Throws ConfigError when a pattern names nothing or a folder cannot be listed.
std::vector<std::string> find_files(const std::vector<std::string>& patterns);

}  // namespace sherd
