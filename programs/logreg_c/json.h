/* Reading JSON (RFC 8259) without building a tree: a cursor over the text, moved by what reads it. */
#ifndef JSON_H
#define JSON_H

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    const char *what; /* the document, for errors: "model", "dataset", … */
    const char *at, *end;
} Json;

/* Ends the program with exit code 1 and one line on standard error. */
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Calls each with the key of every member; it must read or skip the value. */
void json_object(Json *json, void (*each)(Json *json, const char *key, void *context), void *context);

/* Calls each for every element; it must read or skip it. */
void json_array(Json *json, void (*each)(Json *json, void *context), void *context);

/* A number, correctly rounded; fails if the value is not one or is not finite. */
double json_number(Json *json);

/* Moves past any value. */
void json_skip(Json *json);

/* Fails unless nothing but white space follows. */
void json_end(Json *json);

#endif
