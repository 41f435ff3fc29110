#include "json.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_SIZE = 64, MOST_NESTED = 64 };

static void space(Json *json) {
    while (json->at < json->end && strchr(" \t\r\n", *json->at) && *json->at) json->at++;
}

_Noreturn static void malformed(const Json *json, const char *expected) {
    fail("%s: malformed JSON: expected %s before the last %zu bytes", json->what, expected, (size_t)(json->end - json->at));
}

static char peek(Json *json) {
    space(json);
    return json->at < json->end ? *json->at : '\0';
}

static void take(Json *json, char wanted, const char *name) {
    if (peek(json) != wanted) malformed(json, name);
    json->at++;
}

/* Copies a string up to size - 1 bytes; escapes are kept as they are, which is enough to compare plain keys. */
static void string(Json *json, char *copy, size_t size) {
    size_t length = 0;
    take(json, '"', "a string");
    for (;; json->at++) {
        if (json->at >= json->end) malformed(json, "the end of a string");
        char c = *json->at;
        if (c == '"') break;
        if (c == '\\' && ++json->at >= json->end) malformed(json, "the end of a string");
        if (copy && length + 1 < size) copy[length++] = c;
    }
    json->at++;
    if (copy) copy[length] = '\0';
}

void json_object(Json *json, void (*each)(Json *, const char *, void *), void *context) {
    char key[KEY_SIZE];
    take(json, '{', "an object");
    if (peek(json) == '}') {
        json->at++;
        return;
    }
    do {
        string(json, key, sizeof key);
        take(json, ':', "':'");
        each(json, key, context);
    } while (peek(json) == ',' && json->at++);
    take(json, '}', "'}'");
}

void json_array(Json *json, void (*each)(Json *, void *), void *context) {
    take(json, '[', "a list");
    if (peek(json) == ']') {
        json->at++;
        return;
    }
    do {
        each(json, context);
    } while (peek(json) == ',' && json->at++);
    take(json, ']', "']'");
}

/* The grammar of numbers is narrower than what strtod takes (no "nan", no hexadecimal), so it is checked here. Where the digits fit
 * into 53 bits and the power of ten is exact in a double, one multiplication or division is correctly rounded (W. Clinger,
 * How to Read Floating Point Numbers Accurately, 1990); strtod, which is slow here, does the rest. */
double json_number(Json *json) {
    static const double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                    1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    peek(json);
    const char *start = json->at, *at = start, *end = json->end;
    bool negative = at < end && *at == '-', fits = true;
    uint64_t digits = 0;
    int exponent = 0, any = 0;
    if (negative) at++;
    for (; at < end && *at >= '0' && *at <= '9'; at++, any = 1) {
        fits = fits && digits < (1ull << 53) / 10;
        if (fits) digits = digits * 10 + (uint64_t)(*at - '0');
    }
    if (any && at < end && *at == '.') {
        for (at++, any = 0; at < end && *at >= '0' && *at <= '9'; at++, any = 1) {
            fits = fits && digits < (1ull << 53) / 10;
            if (fits) digits = digits * 10 + (uint64_t)(*at - '0'), exponent--;
        }
    }
    if (any && at < end && (*at == 'e' || *at == 'E')) {
        int sign = 1, power = 0;
        at++;
        if (at < end && (*at == '-' || *at == '+')) sign = *at++ == '-' ? -1 : 1;
        for (any = 0; at < end && *at >= '0' && *at <= '9'; at++, any = 1)
            if (power < 10000) power = power * 10 + (*at - '0');
        exponent += sign * power;
    }
    if (!any) malformed(json, "a number");
    json->at = at;
    double value;
    if (fits && exponent >= -22 && exponent <= 22) {
        value = exponent < 0 ? (double)digits / powers[-exponent] : (double)digits * powers[exponent];
        return negative ? -value : value;
    }
    char copy[512];
    size_t length = (size_t)(at - start);
    if (length >= sizeof copy) malformed(json, "a number of fewer digits");
    memcpy(copy, start, length);
    copy[length] = '\0';
    value = strtod(copy, NULL);
    if (!isfinite(value)) fail("%s: the number %s is not finite", json->what, copy);
    return value;
}

static void skip_nested(Json *json, int depth);

static void skip_member(Json *json, const char *key, void *depth) {
    (void)key;
    skip_nested(json, *(int *)depth);
}

static void skip_element(Json *json, void *depth) { skip_nested(json, *(int *)depth); }

static void skip_word(Json *json, const char *word) {
    size_t length = strlen(word);
    if ((size_t)(json->end - json->at) < length || memcmp(json->at, word, length) != 0) malformed(json, "a value");
    json->at += length;
}

static void skip_nested(Json *json, int depth) {
    if (++depth > MOST_NESTED) fail("%s: nested deeper than %d", json->what, MOST_NESTED);
    switch (peek(json)) {
    case '{': json_object(json, skip_member, &depth); break;
    case '[': json_array(json, skip_element, &depth); break;
    case '"': string(json, NULL, 0); break;
    case 't': skip_word(json, "true"); break;
    case 'f': skip_word(json, "false"); break;
    case 'n': skip_word(json, "null"); break;
    default: json_number(json);
    }
}

void json_skip(Json *json) { skip_nested(json, 0); }

void json_end(Json *json) {
    if (peek(json) != '\0' || json->at < json->end) malformed(json, "the end");
}
