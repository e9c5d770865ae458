/* int8 per tensor in C, judged by the test vectors of samebits: reads their text files, writes its own answers.
 *
 *     samebits vectors int8_per_tensor --out vectors
 *     cc -O2 -o int8_per_tensor examples/verify_in_c/int8_per_tensor.c -lm
 *     ./int8_per_tensor vectors > answers.txt
 *     samebits verify vectors --results answers.txt
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static float number(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static uint32_t bits(float x) { uint32_t b; memcpy(&b, &x, 4); return b; }

/* The quantizer: halves go to even, the way rintf rounds unless a program changes it. */
static float rounded(float x, float scale) { return rintf(x / scale); }
static float clamped(float code) { return code < -128 ? -128 : code > 127 ? 127 : code; }
static float value(float code, float scale) { return code * scale + 0.0f; } /* -0 becomes +0, NaN stays */

static FILE *table(const char *folder, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.txt", folder, name);
    FILE *file = fopen(path, "r");
    if (!file) { perror(path); exit(2); }
    return file;
}

int main(int count, char **arguments) {
    static char line[1 << 16];
    uint32_t x, s, g;
    if (count != 2) { fprintf(stderr, "usage: %s DIR\n", arguments[0]); return 2; }

    FILE *file = table(arguments[1], "elements.float32");
    puts("section elements.float32 code value dx");
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "%" SCNx32 " %" SCNx32 " %" SCNx32, &x, &s, &g) != 3) continue; /* a remark */
        float free = rounded(number(x), number(s)), code = clamped(free);
        int8_t stored = isnan(code) ? 0 : (int8_t)code; /* the vectors ask for no code of NaN */
        uint32_t dx = code == free || isnan(free) ? g : 0;
        printf("%02x %08" PRIx32 " %08" PRIx32 "\n", (uint8_t)stored, bits(value(code, number(s))), dx);
    }
    file = table(arguments[1], "parameters.float32");
    puts("section parameters.float32 scale");
    while (fgets(line, sizeof line, file)) {
        if (line[0] == '#') continue;
        float most = 0;
        char *cell = strtok(line, " ");
        for (int i = 0; i < 16; i++, cell = strtok(NULL, " "))
            most = fmaxf(most, fabsf(number((uint32_t)strtoul(cell, NULL, 16))));
        float scale = most / 127;
        printf("%08" PRIx32 "\n", bits(scale < 0x1p-126f ? 0x1p-126f : scale));
    }
    return 0;
}
