// JSON as Python has it: what is written reads back to the same bits, in any locale, and what is no JSON is refused.
#include <radam/saved/json.hpp>

#include <clocale>
#include <cstring>

#include "expect.hpp"
#include "refusals.hpp"

namespace {

using radam::Json;
using radam::json::parse;
using Bits = std::uint64_t;

Bits bits_of(double x) {
    Bits bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
double number_of(const std::string& text) {
    double x = 0.125;
    if (!radam::json::read_double(parse(text).text, x)) throw std::runtime_error("beyond a double");
    return x;
}
template <class T>
std::string written(const T& x) {
    std::string out;
    radam::json::write(out, x);
    return out;
}

void numbers_are_written_as_python_writes_them() {
    const struct {
        double x;
        const char* text;
    } cases[] = {
        {0.0, "0.0"},
        {-0.0, "-0.0"},
        {1.0, "1.0"},
        {5.0, "5.0"},
        {0.1, "0.1"},
        {0.001, "0.001"},
        {0.0001, "0.0001"},
        {0.00012, "0.00012"},
        {1e-5, "1e-05"},
        {1e-8, "1e-08"},
        {0.999, "0.999"},
        {-123.456, "-123.456"},
        {1e15, "1000000000000000.0"},
        {1e16, "1e+16"},
        {123456789012345678.0, "1.2345678901234568e+17"},
        {1.0 / 3.0, "0.3333333333333333"},
        {5e-324, "5e-324"},
        {1.7976931348623157e308, "1.7976931348623157e+308"},
        {std::numeric_limits<double>::infinity(), "Infinity"},
        {-std::numeric_limits<double>::infinity(), "-Infinity"},
    };
    for (const auto& c : cases) {
        EXPECT(written(c.x) == c.text);
        EXPECT(bits_of(number_of(c.text)) == bits_of(c.x));
    }
    EXPECT(written(std::numeric_limits<double>::quiet_NaN()) == "NaN");
    const double nan = number_of("NaN");
    EXPECT(nan != nan);
}

void every_number_reads_back_to_its_bits() {
    Bits bits = 1;
    int read = 0;
    for (int i = 0; i < 20000; ++i) {
        bits = bits * 6364136223846793005u + 1442695040888963407u;
        const Bits tried = i % 4 == 0 ? bits >> (i % 60) : bits;  // subnormal ones too
        double x;
        std::memcpy(&x, &tried, sizeof x);
        if (x - x != 0.0) continue;
        ++read;
        if (bits_of(number_of(written(x))) != tried) EXPECT(written(x) == "to read back");
    }
    EXPECT(read > 19000);
}

void numbers_of_any_spelling_are_read() {
    EXPECT(number_of("1E3") == 1000.0 && number_of("1e+3") == 1000.0 && number_of("-2") == -2.0);
    EXPECT(number_of("0.5e-1") == 0.05 && number_of("0e999") == 0.0);
    EXPECT(parse("123456789012345678901234567890").text == "123456789012345678901234567890");
    for (const char* beyond : {"1e999", "-1e999", "1e-999"}) EXPECT(says(why([&] { number_of(beyond); }), "beyond"));
    std::uint64_t whole = 0;
    EXPECT(radam::json::read_whole("18446744073709551615", whole) && whole == ~std::uint64_t{0});
    EXPECT(radam::json::read_whole("0", whole) && whole == 0);
    for (const char* none : {"18446744073709551616", "-1", "1.0", "1e3", "", "01", "+1", " 1"})
        EXPECT(!radam::json::read_whole(none, whole));
}

void strings_keep_every_character() {
    const char* const text = "a\"b\\c/\b\f\n\r\t\x01\x7f \xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80";
    const char* const escaped = R"("a\"b\\c/\b\f\n\r\t\u0001\u007f \u00e9 \u20ac \ud83d\ude00")";
    EXPECT(written(std::string(text)) == escaped);
    EXPECT(parse(escaped).text == text);
    EXPECT(parse(std::string("\"") + "\xc3\xa9 \xf0\x9f\x98\x80 \\/ \\u00E9\"").text ==
           "\xc3\xa9 \xf0\x9f\x98\x80 / \xc3\xa9");
    EXPECT(parse(R"("\u0000")").text == std::string(1, '\0'));
    EXPECT(written(std::string(1, '\0')) == R"("\u0000")");
}

void values_are_written_as_they_were_read() {
    const char* const text = R"({"a": [1, 2.5, -3e-08], "b": {}, "c": [], "d": [true, false, null, NaN], "": "x"})";
    EXPECT(written(parse(text)) == text);
    EXPECT(written(parse(
               " \n{ \"a\":[1,2.5 ,\t-3e-08],\"b\":{},\"c\":[ ],\"d\":[true,false,null,NaN],\"\":\"x\"}\r")) == text);
    const Json found = parse(text);
    EXPECT(found.find("b")->kind == Json::Kind::object && found.find("e") == nullptr);
}

void json_that_is_none_is_refused() {
    const std::string deep_list(1000000, '['), whole_list = deep_list + std::string(1000000, ']');
    std::string deep_object;
    for (int i = 0; i < 1000000; ++i) deep_object += "{\"a\":";
    const struct {
        std::string text;
        const char* words;
    } cases[] = {
        {"", "there is no value"},
        {"x", "there is no value"},
        {"nul", "there is no value"},
        {"[1,]", "there is no value"},
        {"[1", "is missing"},
        {"{\"a\":1", "is missing"},
        {"{\"a\"}", "':'"},
        {"{1:2}", "a key"},
        {"{\"a\":1,}", "a key"},
        {"[1] 2", "something follows"},
        {std::string("1\0", 2), "something follows"},
        {"01", "there is no value"},
        {"-", "there is no value"},
        {"1.", "there is no value"},
        {".5", "there is no value"},
        {"1e", "there is no value"},
        {"+1", "there is no value"},
        {"'a'", "there is no value"},
        {"\"a", "does not end"},
        {"\"a\\", "escape"},
        {"\"\\x\"", "escape"},
        {"\"\\u12g4\"", "hexadecimal"},
        {"\"\\u12", "hexadecimal"},
        {"\"\\ud800\"", "surrogate"},
        {"\"\\ud800\\u0041\"", "surrogate"},
        {"\"\\udc00\"", "surrogate"},
        {"\"a\nb\"", "control character"},
        {std::string("\"\0\"", 3), "control character"},
        {"{\"a\": 1, \"\\u0061\": 2}", "\"a\" comes twice"},
        {"\"\xff\"", "UTF-8"},
        {"\"\xc0\x80\"", "UTF-8"},
        {"\"\xed\xa0\x80\"", "UTF-8"},
        {"\"\xe0\x80\x80\"", "UTF-8"},
        {"\"\xf4\x90\x80\x80\"", "UTF-8"},
        {"\"\xe2\x82", "UTF-8"},
        {deep_list, "too deep"},
        {whole_list, "too deep"},
        {deep_object, "too deep"},
    };
    for (const auto& c : cases)
        if (!says(why([&] { parse(c.text); }), c.words)) EXPECT(c.text.substr(0, 60) == "to be refused");
}

void more_values_than_memory_may_be_given_to_are_refused() {
    for (const char* text : {"[[], [], []]", "{\"a\": [1, 2]}", "[1, \"a\", null]"}) {
        EXPECT(why([&] { parse(text, 4); }).empty());
        EXPECT(says(why([&] { parse(text, 3); }), "too many values"));
    }
    EXPECT(radam::json::most_values == 10000000);  // of less than 100 bytes each, where nobody says otherwise
}

}  // namespace

int main() {
    std::setlocale(LC_ALL, "");  // whatever it is, numbers have a point
    numbers_are_written_as_python_writes_them();
    every_number_reads_back_to_its_bits();
    numbers_of_any_spelling_are_read();
    strings_keep_every_character();
    values_are_written_as_they_were_read();
    json_that_is_none_is_refused();
    more_values_than_memory_may_be_given_to_are_refused();
    return failures == 0 ? 0 : 1;
}
