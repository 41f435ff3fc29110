/* A small streaming JSON reader (RFC 8259): of a file, in blocks, or of a text. It keeps nothing that it has read, so a
 * dataset may be larger than memory would hold as text. Errors end the program with one line that says where. */
#ifndef JSON_H
#define JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

typedef struct {
    const char *name;                      /* of the input, for errors */
    const unsigned char *start, *at, *end; /* of the current block */
    size_t before;                         /* bytes read before it */
    unsigned char *block;                  /* NULL when a text is read, as is file */
    FILE *file;
    bool first; /* nothing read yet of the array or object just entered */
} Json;

/* Print one line to standard error and end the program with code 1. */
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Like realloc, of count items; ends the program when there is no memory. */
void *grow(void *items, size_t count, size_t size);

/* Returns false if there is no such file. */
bool json_open_file(Json *json, const char *path, const char *name);
void json_open_text(Json *json, const char *text, const char *name);
/* Check that nothing but blanks follows. */
void json_close(Json *json);

/* Enter an array '[' or object '{', and before each of its items ask whether there is one more before ']' or '}'. */
void json_enter(Json *json, char opening);
bool json_more(Json *json, char closing);

/* A key with its colon, cut to what fits (escapes are kept as they are written). */
void json_key(Json *json, char *key, size_t size);
/* A finite number, correctly rounded. */
double json_number(Json *json, const char *what);
/* Whether the next value is null; takes it if so. */
bool json_null(Json *json);
/* Any value, left out; nested at most 64 deep. */
void json_skip(Json *json);

#endif
