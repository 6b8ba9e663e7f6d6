// Safetensors files: what is written reads back, what is broken is refused, and a file is written whole or not at all.
#include <radam/saved/safetensors.hpp>

#include <cstring>
#include <filesystem>

#include "expect.hpp"
#include "refusals.hpp"

#if !defined(_WIN32)
#include <sys/resource.h>

#include <csignal>

// In place of the system's: fails for files, or for folders, when asked to.
static mode_t sync_fails_for = 0;
extern "C" int fsync(int handle) {
    struct stat found;
    if (fstat(handle, &found) == 0 && (found.st_mode & S_IFMT) != sync_fails_for) return 0;
    errno = EINVAL;
    return -1;
}
#endif

namespace {

namespace fs = std::filesystem;
const fs::path folder = fs::temp_directory_path() / radam::detail::random_name();
std::string in_folder(const char* name) { return (folder / name).string(); }

std::string content_of(const std::string& path) {
    std::string content(static_cast<std::size_t>(fs::file_size(path)), '\0');
    std::FILE* const file = std::fopen(path.c_str(), "rb");
    EXPECT(std::fread(&content[0], 1, content.size(), file) == content.size());
    std::fclose(file);
    return content;
}
void put(const std::string& path, const std::string& content) {
    std::FILE* const file = std::fopen(path.c_str(), "wb");
    EXPECT(std::fwrite(content.data(), 1, content.size(), file) == content.size());
    std::fclose(file);
}
std::string file_of(const std::string& header, const std::string& data) {
    std::string content;
    for (int i = 0; i < 8; ++i)
        content += static_cast<char>(static_cast<unsigned char>(std::uint64_t{header.size()} >> (8 * i)));
    return content + header + data;
}
int entries() { return static_cast<int>(std::distance(fs::directory_iterator(folder), fs::directory_iterator())); }

const float floats[6] = {1, -2, 3, 4, 5, 6};
const double doubles[1] = {0.1};
const std::int8_t codes[3] = {-1, 0, 127};

void write_some(const std::string& path) {
    radam::write_safetensors(path, {{"radam", "{\"a\": \"\\u00e9\"}"}, {"other", "\xc3\xa9"}},
                             {{"codes", "I8", {3}, codes},
                              {"empty", "F32", {0, 3}, nullptr},
                              {"b", "F32", {2, 3}, floats},
                              {"a", "F32", {}, floats},
                              {"wide", "F64", {1}, doubles}});
}

void a_file_reads_back() {
    const std::string path = in_folder("some");
    write_some(path);
    const radam::SafetensorsFile file(path);
    EXPECT(*file.metadata("radam") == "{\"a\": \"\\u00e9\"}" && *file.metadata("other") == "\xc3\xa9");
    EXPECT(file.metadata("none") == nullptr);
    EXPECT(file.tensors().size() == 5);
    const char* const order[] = {"wide", "a", "b", "empty", "codes"};
    for (std::size_t i = 0; i < 5; ++i) {
        const radam::StoredTensor& tensor = file.tensors()[i];
        EXPECT(tensor.name == order[i]);
        char bytes[64] = {};
        file.read(tensor, bytes);
        if (tensor.name == "wide") EXPECT(tensor.dtype == "F64" && std::memcmp(bytes, doubles, 8) == 0);
        if (tensor.name == "a") EXPECT(tensor.shape.empty() && std::memcmp(bytes, floats, 4) == 0);
        if (tensor.name == "b")
            EXPECT(tensor.shape == (std::vector<std::int64_t>{2, 3}) && std::memcmp(bytes, floats, 24) == 0);
        if (tensor.name == "empty")
            EXPECT(tensor.shape == (std::vector<std::int64_t>{0, 3}) && tensor.begin == tensor.end);
        if (tensor.name == "codes") EXPECT(tensor.dtype == "I8" && std::memcmp(bytes, codes, 3) == 0);
    }
}

void a_file_cut_short_or_grown_anywhere_is_refused() {
    const std::string path = in_folder("cut");
    write_some(path);
    const std::string content = content_of(path);
    for (std::size_t length = 0; length < content.size(); ++length) {
        put(path, content.substr(0, length));
        const std::string error = why([&] { radam::SafetensorsFile file(path); });
        if (!says(error, path)) EXPECT(std::to_string(length) == "to be refused");
    }
    put(path, content + "x");
    EXPECT(says(why([&] { radam::SafetensorsFile file(path); }), "bytes, but it holds"));
}

void a_tensor_that_does_not_fit_is_refused() {
    const auto tensor = [](const char* dtype, const char* shape, const char* offsets) {
        return std::string("{\"t\":{\"dtype\":") + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets +
               "}}";
    };
    const struct {
        std::string header;
        const char* words;
    } cases[] = {
        {"[]", "no object"},
        {"3", "no object"},
        {"{\"t\":3}", "dtype"},
        {"{\"t\":{}}", "dtype"},
        {"{\"t\":{\"dtype\":\"F32\"}}", "shape"},
        {tensor("\"F7\"", "[2]", "[0,8]"), "dtype"},
        {tensor("[\"F32\"]", "[2]", "[0,8]"), "dtype"},
        {tensor("\"F32\"", "2", "[0,8]"), "shape"},
        {tensor("\"F32\"", "[2]", "[0,8,8]"), "do not fit"},
        {tensor("\"F32\"", "[2]", "[0]"), "do not fit"},
        {tensor("\"F32\"", "[2]", "[0,7]"), "do not fit"},
        {tensor("\"F32\"", "[3]", "[0,8]"), "do not fit"},
        {tensor("\"F32\"", "[2]", "[8,0]"), "do not fit"},
        {tensor("\"F32\"", "[2]", "[0,8.0]"), "63 bits"},
        {tensor("\"F32\"", "[-2]", "[0,8]"), "63 bits"},
        {tensor("\"F32\"", "[true]", "[0,8]"), "63 bits"},
        {tensor("\"F32\"", "[9223372036854775808]", "[0,8]"), "63 bits"},
        {tensor("\"F32\"", "[4611686018427387904]", "[0,0]"), "do not fit"},
        {tensor("\"F32\"", "[4294967296,4294967296]", "[0,0]"), "do not fit"},
        {tensor("\"F32\"", "[2]", "[4,12]"), "begins at byte 4"},
        {tensor("\"F32\"", "[2]", "[9223372036854775799,9223372036854775807]"), "begins at byte"},
        {tensor("\"F32\"", "[1]", "[0,4]"), "it holds 8"},
        {tensor("\"F32\"", "[3]", "[0,12]"), "it holds 8"},
        {"{}", "it holds 8"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         "begins at byte 4"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         "comes twice"},
        {"{\"__metadata__\":3}", "metadata"},
        {"{\"__metadata__\":{\"a\":3}}", "metadata"},
        {std::string(1000000, '['), "too deep"},
        {"{\"\xff\":3}", "UTF-8"},
    };
    const std::string path = in_folder("bad"), data(8, '\0');
    for (const auto& c : cases) {
        put(path, file_of(c.header, data));
        const std::string error = why([&] { radam::SafetensorsFile file(path); });
        if (!says(error, c.words) || !says(error, path)) EXPECT(c.header.substr(0, 120) + error == "to be refused");
    }
    put(path, file_of(tensor("\"F32\"", "[2]", "[0,8]"), data));
    EXPECT(why([&] { radam::SafetensorsFile file(path); }).empty());
}

void a_header_longer_than_the_file_is_refused() {
    const std::string path = in_folder("long");
    for (const char last : {'\0', '\1', '\x7f', '\x80', '\xff'}) {  // of a length of up to 2^64
        std::string content = file_of("{}", "");
        content[0] = 3;
        content[7] = last;
        put(path, content);
        EXPECT(says(why([&] { radam::SafetensorsFile file(path); }), "longer than the file"));
    }
    EXPECT(says(why([&] { radam::SafetensorsFile file(in_folder("none")); }), "no such file"));
    EXPECT(says(why([&] { radam::SafetensorsFile file(folder.string()); }), "no such file"));
}

void what_cannot_be_in_a_file_is_refused() {
    const std::string path = in_folder("never");
    EXPECT(says(why([&] { radam::write_safetensors(path, {}, {{"\xff", "F32", {1}, floats}}); }), "UTF-8"));
    EXPECT(says(why([&] { radam::write_safetensors(path, {{"a", "\xff"}}, {}); }), "UTF-8"));
    EXPECT(says(why([&] { radam::write_safetensors(path, {}, {{"a", "F31", {1}, floats}}); }), "dtype"));
    EXPECT(says(why([&] { radam::write_safetensors(path, {}, {{"a", "F32", {-1}, floats}}); }), "too large"));
    EXPECT(!fs::exists(path));
}

void a_file_is_there_whole_or_not_at_all() {
    const std::string path = in_folder("whole");
    put(path, "old");
    const int before = entries();
    {
        radam::WholeFile file(path);
        file.write("new", 3);
        EXPECT(entries() == before + 1 && content_of(path) == "old");
    }
    EXPECT(entries() == before && content_of(path) == "old");
    radam::WholeFile file(path);
    file.write("newer", 5);
    file.commit();
    EXPECT(entries() == before && content_of(path) == "newer");

    EXPECT(says(why([&] { radam::WholeFile f((folder / "nowhere" / "f").string()); }), "no such folder"));
    EXPECT(says(why([&] { radam::WholeFile f(folder.string()); }), "no file"));
    EXPECT(says(why([&] { radam::WholeFile f(std::string("a\0b", 3)); }), "NUL"));
    EXPECT(says(why([&] { radam::InFile f(std::string("a\0b", 3)); }), "NUL"));
}

#if !defined(_WIN32)
void a_full_disk_leaves_the_old_file() {
    const std::string path = in_folder("full");
    put(path, "old");
    const int before = entries();
    std::signal(SIGXFSZ, SIG_IGN);
    rlimit all;
    getrlimit(RLIMIT_FSIZE, &all);
    rlimit few = all;
    few.rlim_cur = 100;
    setrlimit(RLIMIT_FSIZE, &few);
    EXPECT(says(why([&] { write_some(path); }), "cannot write " + path));
    const std::vector<char> many(1 << 20);
    radam::WholeFile file(path);
    EXPECT(says(why([&] { file.write(many.data(), many.size()); }), "cannot write " + path));
    setrlimit(RLIMIT_FSIZE, &all);
    EXPECT(content_of(path) == "old" && entries() == before + 1);  // that file is not given up yet
}

void a_save_fails_only_where_the_old_file_stays() {
    const std::string path = in_folder("synced");
    put(path, "old");
    const int before = entries();
    sync_fails_for = S_IFREG;
    EXPECT(says(why([&] { write_some(path); }), "cannot write " + path));
    EXPECT(content_of(path) == "old" && entries() == before);
    sync_fails_for = S_IFDIR;  // the new file is in its place by then
    write_some(path);
    EXPECT(why([&] { radam::SafetensorsFile file(path); }).empty() && entries() == before);
    sync_fails_for = 0;
}

void permissions_are_kept_and_links_are_written_through() {
    const std::string path = in_folder("mode"), fresh = in_folder("fresh");
    put(fresh, "");
    write_some(path);
    EXPECT(fs::status(path).permissions() == fs::status(fresh).permissions());
    fs::permissions(path, fs::perms(0640));
    write_some(path);
    EXPECT(fs::status(path).permissions() == fs::perms(0640));
    fs::permissions(path, fs::perms(0600));
    {
        const radam::WholeFile file(path);  // is as private from the beginning
        for (const auto& entry : fs::directory_iterator(folder))
            if (entry.path().extension() == ".tmp") EXPECT(entry.status().permissions() == fs::perms(0600));
    }

    fs::create_directory(folder / "other");
    fs::create_symlink("other/second", folder / "first");
    fs::create_symlink(folder / "other" / "file", folder / "other" / "second");
    write_some(in_folder("first"));  // to a file that is not there yet
    write_some(in_folder("first"));
    EXPECT(fs::is_symlink(folder / "first") && fs::is_symlink(folder / "other" / "second"));
    EXPECT(fs::is_regular_file(folder / "other" / "file") &&
           why([] { radam::SafetensorsFile f(in_folder("first")); }).empty());
    fs::create_symlink("circle", folder / "circle");
    EXPECT(says(why([] { write_some(in_folder("circle")); }), "too many links"));
    EXPECT(mkfifo(in_folder("pipe").c_str(), 0600) == 0);
    EXPECT(says(why([] { write_some(in_folder("pipe")); }), "no file"));
    EXPECT(says(why([] { radam::SafetensorsFile f(in_folder("pipe")); }), "no such file"));
}

void a_path_without_a_folder_is_in_the_current_one() {
    const fs::path here = fs::current_path();
    fs::current_path(folder);
    write_some("plain");
    EXPECT(fs::exists(folder / "plain") && why([] { radam::SafetensorsFile f("plain"); }).empty());
    fs::current_path(here);
}
#endif

}  // namespace

int main() {
    fs::create_directory(folder);
    a_file_reads_back();
    a_file_cut_short_or_grown_anywhere_is_refused();
    a_tensor_that_does_not_fit_is_refused();
    a_header_longer_than_the_file_is_refused();
    what_cannot_be_in_a_file_is_refused();
    a_file_is_there_whole_or_not_at_all();
#if !defined(_WIN32)
    a_full_disk_leaves_the_old_file();
    a_save_fails_only_where_the_old_file_stays();
    permissions_are_kept_and_links_are_written_through();
    a_path_without_a_folder_is_in_the_current_one();
#endif
    fs::remove_all(folder);
    return failures == 0 ? 0 : 1;
}
