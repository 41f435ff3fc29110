#include "json.h"

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 1 << 16, MOST_NESTED = 64 };

_Noreturn void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "error: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    exit(1);
}

void *grow(void *items, size_t count, size_t size) {
    if (count > SIZE_MAX / size || !(items = realloc(items, count * size)))
        fail("out of memory: %.0f bytes are needed", (double)count * (double)size);
    return items;
}

bool json_open_file(Json *json, const char *path, const char *name) {
    FILE *file = fopen(path, "rb");
    if (!file) return false;
    setvbuf(file, NULL, _IONBF, 0); /* the block is the buffer */
    *json = (Json){.name = name, .file = file, .block = grow(NULL, BLOCK, 1)};
    json->start = json->at = json->end = json->block;
    return true;
}

void json_open_text(Json *json, const char *text, const char *name) {
    const unsigned char *bytes = (const unsigned char *)text;
    *json = (Json){.name = name, .start = bytes, .at = bytes, .end = bytes + strlen(text)};
}

static int refill(Json *json) {
    if (!json->file) return EOF;
    json->before += (size_t)(json->end - json->block);
    size_t count = fread(json->block, 1, BLOCK, json->file);
    if (ferror(json->file)) fail("%s: cannot be read", json->name);
    json->at = json->block;
    json->end = json->block + count;
    return count ? *json->at : EOF;
}

static inline int peek(Json *json) { return json->at < json->end ? *json->at : refill(json); }

static inline int blank_then(Json *json) {
    int c;
    while ((c = peek(json)) == ' ' || c == '\n' || c == '\t' || c == '\r') json->at++;
    return c;
}

static _Noreturn void unexpected(Json *json, const char *wanted) {
    if (peek(json) == EOF) fail("%s: not valid JSON: it ends where %s is expected", json->name, wanted);
    size_t place = json->before + (size_t)(json->at - json->start);
    fail("%s: not valid JSON: %s is expected at byte %zu", json->name, wanted, place);
}

static void take(Json *json, char wanted) {
    char text[2] = {wanted, 0};
    if (blank_then(json) != (unsigned char)wanted) unexpected(json, text);
    json->at++;
}

void json_close(Json *json) {
    if (blank_then(json) != EOF) unexpected(json, "nothing more");
    if (json->file) {
        fclose(json->file);
        free(json->block);
    }
}

void json_enter(Json *json, char opening) {
    take(json, opening);
    json->first = true;
}

bool json_more(Json *json, char closing) {
    bool first = json->first;
    json->first = false;
    if (blank_then(json) == (unsigned char)closing) {
        json->at++;
        return false;
    }
    if (!first) take(json, ',');
    return true;
}

static void read_text(Json *json, char *text, size_t size) {
    size_t length = 0;
    take(json, '"');
    for (int c; (c = peek(json)) != '"'; json->at++) {
        if (c == EOF || c < 0x20) unexpected(json, "the end of a string");
        if (text && length + 1 < size) text[length++] = (char)c;
        if (c == '\\') { /* whatever follows is part of the string, a quote too */
            json->at++;
            if (peek(json) == EOF) unexpected(json, "the end of a string");
        }
    }
    json->at++;
    if (text) text[length] = 0;
}

void json_key(Json *json, char *key, size_t size) {
    read_text(json, key, size);
    take(json, ':');
}

static bool take_word(Json *json, const char *word) {
    if (blank_then(json) != (unsigned char)*word) return false;
    for (; *word; word++, json->at++)
        if (peek(json) != (unsigned char)*word) unexpected(json, "a value");
    return true;
}

bool json_null(Json *json) { return take_word(json, "null"); }

/* ---- numbers ----
 *
 * A number is read as m * 10^e with m an integer of at most 19 digits. If m is below 2^53 and |e| at most 22, both are
 * doubles and one operation rounds correctly (Clinger, "How to read floating point numbers accurately", 1990). Otherwise m
 * is multiplied by a 128-bit approximation of 10^e (as Lemire, "Number parsing at a gigabyte per second", 2021). Its
 * relative error is below 2^-120, so unless what follows the mantissa is that near to a half, the rounding is right. What
 * is left (very long, tiny, huge or tied numbers) goes to strtod, which is right and slow. */

enum { LOWEST = -64, HIGHEST = 27, DIGITS = 19, LONGEST = 400 };

typedef unsigned __int128 Wide;

/* powers[e - LOWEST] is 10^e: high * 2^64 + low, whose top bit is set, times 2^exponent. */
static struct {
    uint64_t high, low;
    int exponent;
} powers[HIGHEST - LOWEST + 1];

static void keep_power(int e, Wide value, int exponent) {
    powers[e - LOWEST].high = (uint64_t)(value >> 64);
    powers[e - LOWEST].low = (uint64_t)value;
    powers[e - LOWEST].exponent = exponent;
}

static void make_powers(void) {
    const Wide one = (Wide)1 << 127;
    Wide value = one;
    int exponent = -127;
    for (int e = 0; e <= HIGHEST; e++) {
        keep_power(e, value, exponent);
        value = (value >> 1) + (value >> 3); /* times 10 / 16, exact: 5^27 has 63 bits */
        exponent += 4;
        while (!(value >> 127)) value <<= 1, exponent--;
    }
    value = one;
    exponent = -127;
    for (int e = -1; e >= LOWEST; e--) {
        Wide rest = value % 10;
        value /= 10;
        int shift = value >> 124 ? 3 : 4;
        value = (value << shift) | ((rest << shift) / 10);
        exponent -= shift;
        keep_power(e, value, exponent);
    }
}

/* m * 10^e, correctly rounded; false if that cannot be told. */
static bool multiply(uint64_t m, int e, double *result) {
    if (!powers[0].high) make_powers();
    int shift = __builtin_clzll(m), exponent = powers[e - LOWEST].exponent - shift + 64;
    m <<= shift;
    Wide product = (Wide)m * powers[e - LOWEST].high + (((Wide)m * powers[e - LOWEST].low) >> 64);
    if (!(product >> 127)) product <<= 1, exponent--;
    const Wide half = (Wide)1 << 74;
    Wide rest = product & ((half << 1) - 1);
    if ((rest > half ? rest - half : half - rest) < 1024) return false;
    uint64_t mantissa = (uint64_t)(product >> 75) + (rest > half);
    /* The mantissa's top bit adds one to the exponent, as does its carry. */
    uint64_t bits = ((uint64_t)(exponent + 75 + 52 + 1022) << 52) + mantissa;
    memcpy(result, &bits, sizeof bits);
    return true;
}

static double value_of(const char *text, uint64_t m, int digits, int e) {
    static const double tens[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                  1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    double value;
    if (digits > DIGITS) return strtod(text, NULL);
    if (m == 0) return 0;
    if (m >> 53 == 0 && e >= -22 && e <= 22) return e < 0 ? (double)m / tens[-e] : (double)m * tens[e];
    if (e >= LOWEST && e <= HIGHEST && multiply(m, e, &value)) return value;
    return strtod(text, NULL);
}

/* Digits into m and text; in digits those from the first that is not 0 are counted. Returns how many were read. */
static int read_digits(Json *json, char **text, const char *end, uint64_t *m, int *digits) {
    int read = 0;
    for (int c; (c = peek(json)) >= '0' && c <= '9'; json->at++, read++) {
        if (*text == end) unexpected(json, "a shorter number");
        *(*text)++ = (char)c;
        if (*digits < DIGITS) *m = *m * 10 + (uint64_t)(c - '0');
        if (*m) ++*digits;
    }
    return read;
}

double json_number(Json *json, const char *what) {
    char text[LONGEST], *at = text, *room = text + LONGEST - 20;
    uint64_t m = 0;
    int digits = 0, e = 0, c = blank_then(json);
    bool negative = c == '-';
    if (negative) json->at++;
    if ((c = peek(json)) < '0' || c > '9') {
        char wanted[40];
        snprintf(wanted, sizeof wanted, "a number (%.20s)", what);
        unexpected(json, wanted);
    }
    if (read_digits(json, &at, room, &m, &digits) > 1 && *text == '0') unexpected(json, "no leading zero");
    if (peek(json) == '.') {
        json->at++;
        *at++ = '.';
        e = -read_digits(json, &at, room, &m, &digits);
        if (!e) unexpected(json, "a digit");
    }
    if ((c = peek(json)) == 'e' || c == 'E') {
        json->at++;
        bool below = (c = peek(json)) == '-';
        if (below || c == '+') json->at++;
        int power = 0, count = 0;
        for (; (c = peek(json)) >= '0' && c <= '9'; json->at++, count++)
            if (power < 10000) power = power * 10 + c - '0';
        if (!count) unexpected(json, "a digit");
        if (below) power = -power;
        at += snprintf(at, 12, "e%d", power);
        e += power;
    }
    *at = 0;
    double value = value_of(text, m, digits, e);
    if (!isfinite(value)) fail("%s: %s has a number too large for a double: %.30s", json->name, what, text);
    return negative ? -value : value;
}

/* ---- what is left out ---- */

static void skip_nested(Json *json, int depth) {
    int c = blank_then(json);
    if (depth == MOST_NESTED) unexpected(json, "less nesting");
    if (c == '{') {
        for (json_enter(json, '{'); json_more(json, '}');) {
            json_key(json, NULL, 0);
            skip_nested(json, depth + 1);
        }
    } else if (c == '[') {
        for (json_enter(json, '['); json_more(json, ']');) skip_nested(json, depth + 1);
    } else if (c == '"') {
        read_text(json, NULL, 0);
    } else if (c == '-' || (c >= '0' && c <= '9')) {
        json_number(json, "a value");
    } else if (!take_word(json, "true") && !take_word(json, "false") && !take_word(json, "null")) {
        unexpected(json, "a value");
    }
}

void json_skip(Json *json) { skip_nested(json, 0); }
