/* What the processor's speed is measured with: integer programs as compilers make them.
 *
 * As a guest (the default) `_start` gets the program's number in RDI, leaves the checksum in RAX and halts.
 * With -DHOST it is a program that prints the checksums of all, for comparison. */
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

static u32 state = 1;
static u32 next(void) {
	state = state * 1664525 + 1013904223;
	return state >> 8;
}

static u8 composite[1 << 18];
static u64 sieve(void) {
	const u32 n = sizeof composite;
	u64 sum = 0;
	for (u32 i = 0; i < n; i++)
		composite[i] = 0;
	for (u32 i = 2; i < n; i++) {
		if (composite[i])
			continue;
		sum += i;
		for (u32 k = 2 * i; k < n; k += i)
			composite[k] = 1;
	}
	return sum;
}

static const u32 K[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};
#define ROR(x, n) ((x) >> (n) | (x) << (32 - (n)))
static void compress(u32 h[8], const u8 *p) {
	u32 w[64], v[8];
	for (int i = 0; i < 16; i++)
		w[i] = p[4 * i] << 24 | p[4 * i + 1] << 16 | p[4 * i + 2] << 8 | p[4 * i + 3];
	for (int i = 16; i < 64; i++) {
		u32 a = ROR(w[i - 15], 7) ^ ROR(w[i - 15], 18) ^ w[i - 15] >> 3;
		u32 b = ROR(w[i - 2], 17) ^ ROR(w[i - 2], 19) ^ w[i - 2] >> 10;
		w[i] = w[i - 16] + a + w[i - 7] + b;
	}
	for (int i = 0; i < 8; i++)
		v[i] = h[i];
	for (int i = 0; i < 64; i++) {
		u32 s1 = ROR(v[4], 6) ^ ROR(v[4], 11) ^ ROR(v[4], 25);
		u32 t1 = v[7] + s1 + ((v[4] & v[5]) ^ (~v[4] & v[6])) + K[i] + w[i];
		u32 s0 = ROR(v[0], 2) ^ ROR(v[0], 13) ^ ROR(v[0], 22);
		u32 t2 = s0 + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
		v[7] = v[6], v[6] = v[5], v[5] = v[4], v[4] = v[3] + t1;
		v[3] = v[2], v[2] = v[1], v[1] = v[0], v[0] = t1 + t2;
	}
	for (int i = 0; i < 8; i++)
		h[i] += v[i];
}
static u8 message[1 << 16];
static u64 sha256(void) {
	u32 h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
	for (u32 i = 0; i < sizeof message; i++)
		message[i] = next();
	for (u32 i = 0; i < sizeof message; i += 64)
		compress(h, message + i);
	return (u64)h[0] << 32 | h[7];
}

static u32 numbers[1 << 15];
static void quicksort(u32 *low, u32 *high) {
	while (low < high) {
		u32 pivot = low[(high - low) / 2], *i = low, *k = high;
		while (i <= k) {
			while (*i < pivot)
				i++;
			while (*k > pivot)
				k--;
			if (i <= k) {
				u32 t = *i;
				*i++ = *k, *k-- = t;
			}
		}
		quicksort(low, k);
		low = i;
	}
}
static u64 sort(void) {
	const u32 n = sizeof numbers / sizeof *numbers;
	u64 sum = 0;
	for (u32 i = 0; i < n; i++)
		numbers[i] = next();
	quicksort(numbers, numbers + n - 1);
	for (u32 i = 0; i < n; i++)
		sum = sum * 31 + numbers[i];
	return sum;
}

struct word { struct word *next; u32 hash, count; char text[16]; };
static struct word words[4096], *table[1024];
static u64 count_words(void) {
	u32 used = 0;
	u64 sum = 0;
	for (u32 i = 0; i < 1024; i++)
		table[i] = 0;
	for (u32 i = 0; i < 40000; i++) {
		char text[16];
		u32 r = next() % 3000, len = 0, hash = 5381;
		do
			text[len++] = 'a' + r % 10;
		while (r /= 10);
		text[len] = 0;
		for (char *p = text; *p; p++)
			hash = hash * 33 ^ *p;
		struct word *w = table[hash % 1024];
		for (; w; w = w->next) {
			char *a = w->text, *b = text;
			while (*a && *a == *b)
				a++, b++;
			if (w->hash == hash && *a == *b)
				break;
		}
		if (!w) {
			w = &words[used++];
			w->hash = hash, w->count = 0;
			for (u32 k = 0; k <= len; k++)
				w->text[k] = text[k];
			w->next = table[hash % 1024];
			table[hash % 1024] = w;
		}
		sum += ++w->count;
	}
	return sum << 16 | used;
}

#define N 72
static int a[N][N], b[N][N], c[N][N];
static u64 matrix(void) {
	u64 sum = 0;
	for (int i = 0; i < N; i++)
		for (int k = 0; k < N; k++)
			a[i][k] = next(), b[i][k] = next();
	for (int i = 0; i < N; i++)
		for (int k = 0; k < N; k++) {
			int dot = 0;
			for (int l = 0; l < N; l++)
				dot += a[i][l] * b[l][k];
			c[i][k] = dot;
			sum = sum * 7 + (u32)dot;
		}
	return sum;
}

static u64 interpret(void) {
	static const u8 code[] = {0, 1, 3, 2, 5, 4, 1, 6, 0, 3, 7, 2, 5, 4, 8, 9};
	u64 acc = 1, x = 3, y = 7, steps = 0;
	for (u32 pc = 0; steps < 300000; steps++) {
		switch (code[pc++ % sizeof code]) {
		case 0: acc += x; break;
		case 1: acc ^= y << 3; break;
		case 2: x = acc >> 5; break;
		case 3: y += acc & 0xff; break;
		case 4: acc = acc * 5 + 1; break;
		case 5: if (acc & 1) pc++; break;
		case 6: x -= y; break;
		case 7: acc = x > y ? acc - x : acc + y; break;
		case 8: y = (y >> 7) ^ x; break;
		default: acc = acc >> 1 | acc << 63;
		}
	}
	return acc ^ x ^ y;
}

#define PROGRAMS 6
static u64 run(u64 number) {
	state = 1;
	switch (number) {
	case 0: return sieve();
	case 1: return sha256();
	case 2: return sort();
	case 3: return count_words();
	case 4: return matrix();
	default: return interpret();
	}
}

#ifdef HOST
int printf(const char *, ...);
int main(void) {
	for (int i = 0; i < PROGRAMS; i++)
		printf("%lu\n", run(i));
}
#else
__attribute__((section(".text.start"))) void _start(u64 number) {
	u64 sum = run(number);
	for (;;)
		asm volatile("hlt" : : "a"(sum));
}
#endif
